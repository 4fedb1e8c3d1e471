package ha

import "testing"

func (c *cluster) testDrain(t *testing.T) {}
func (c *cluster) testLoad(t *testing.T)  {}
