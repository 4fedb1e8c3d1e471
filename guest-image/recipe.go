// Package guestrecipe carries the recipe and the lock file of the guest image, so
// that an installed coffer can build the image without the source tree.
package guestrecipe

import _ "embed"

// Recipe is recipe.toml: what goes into the image.
//
//go:embed recipe.toml
var Recipe string

// Lock is packages.lock: the exact packages it is made from.
//
//go:embed packages.lock
var Lock string
