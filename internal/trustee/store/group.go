package store

type group struct{}

func (g *group) start(*Store) {}
func (g *group) stop()        {}
