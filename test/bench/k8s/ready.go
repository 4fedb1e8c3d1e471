package main

import "context"

func (b *bench) ready(context.Context) error { return nil }
