package oci

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Limits on an image configuration.
const (
	maxArgs = 4096
	maxEnv  = 4096
)

// ImageConfig is an image configuration (OCI image specification v1.1, "Image
// Configuration"), with the fields that decide how a container runs.
type ImageConfig struct {
	Created      string          `json:"created,omitempty"`
	Author       string          `json:"author,omitempty"`
	Architecture string          `json:"architecture"`
	OS           string          `json:"os"`
	Variant      string          `json:"variant,omitempty"`
	Config       ContainerConfig `json:"config"`
	RootFS       RootFS          `json:"rootfs"`
	History      []History       `json:"history,omitempty"`
}

// ContainerConfig is the configuration of the container that the image makes.
type ContainerConfig struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
}

// RootFS lists the digests of the uncompressed layers, lowest first.
type RootFS struct {
	Type    string   `json:"type"`
	DiffIDs []Digest `json:"diff_ids"`
}

// History says how a layer was made. It is written, not read.
type History struct {
	Created    string `json:"created,omitempty"`
	CreatedBy  string `json:"created_by,omitempty"`
	EmptyLayer bool   `json:"empty_layer,omitempty"`
}

// ParseImageConfig decodes an image configuration. The caller compares the
// number of diff IDs with that of the layers: [ImageConfig.CheckImage].
func ParseImageConfig(data []byte) (*ImageConfig, error) {
	c, err := parseImageConfig(data)
	if err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	return c, nil
}

func parseImageConfig(data []byte) (*ImageConfig, error) {
	doc, err := parseObject(data)
	if err != nil {
		return nil, err
	}
	c := &ImageConfig{}
	for name, to := range map[string]*string{
		"created": &c.Created, "author": &c.Author, "architecture": &c.Architecture, "os": &c.OS, "variant": &c.Variant,
	} {
		if err := doc.get(name, to); err != nil {
			return nil, err
		}
	}
	if !doc.has("rootfs") {
		return nil, fmt.Errorf("rootfs: missing")
	}
	if err := c.RootFS.decode(doc["rootfs"]); err != nil {
		return nil, fmt.Errorf("rootfs.%w", err)
	}
	if raw := doc["config"]; len(raw) != 0 && string(raw) != "null" {
		if err := c.Config.decode(raw); err != nil {
			return nil, fmt.Errorf("config.%w", err)
		}
	}
	return c, nil
}

func (r *RootFS) decode(raw json.RawMessage) error {
	o, err := parseObject(raw)
	if err != nil {
		return err
	}
	if err := o.get("type", &r.Type); err != nil {
		return err
	}
	if r.Type != "layers" {
		return fmt.Errorf("type: expected layers, got %q", clip(r.Type))
	}
	var ids []string
	if err := o.get("diff_ids", &ids); err != nil {
		return err
	}
	if len(ids) > MaxLayers {
		return fmt.Errorf("diff_ids: %d of them, at most %d are allowed", len(ids), MaxLayers)
	}
	r.DiffIDs = make([]Digest, len(ids))
	for i, id := range ids {
		if r.DiffIDs[i], err = ParseDigest(id); err != nil {
			return fmt.Errorf("diff_ids[%d]: %w", i, err)
		}
	}
	return nil
}

func (c *ContainerConfig) decode(raw json.RawMessage) error {
	o, err := parseObject(raw)
	if err != nil {
		return err
	}
	for name, to := range map[string]any{
		"User": &c.User, "WorkingDir": &c.WorkingDir, "StopSignal": &c.StopSignal,
		"Env": &c.Env, "Entrypoint": &c.Entrypoint, "Cmd": &c.Cmd, "Labels": &c.Labels,
	} {
		if err := o.get(name, to); err != nil {
			return err
		}
	}
	for name, to := range map[string]*map[string]struct{}{"ExposedPorts": &c.ExposedPorts, "Volumes": &c.Volumes} {
		if *to, err = o.set(name); err != nil {
			return err
		}
	}
	if len(c.Entrypoint) > maxArgs || len(c.Cmd) > maxArgs {
		return errors.New(fieldProblem("Entrypoint, Cmd", max(len(c.Entrypoint), len(c.Cmd)), maxArgs))
	}
	if len(c.Env) > maxEnv {
		return errors.New(fieldProblem("Env", len(c.Env), maxEnv))
	}
	return nil
}

// fieldProblem names a field that has too many entries.
func fieldProblem(field string, got, most int) string {
	return fmt.Sprintf("%s: %d entries, at most %d are allowed", field, got, most)
}

// set decodes an object that stands for the set of its names.
func (o object) set(name string) (map[string]struct{}, error) {
	raw, ok := o[name]
	if !ok || string(raw) == "null" {
		return nil, nil
	}
	members, err := parseObject(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	out := make(map[string]struct{}, len(members))
	for m := range members {
		out[m] = struct{}{}
	}
	return out, nil
}

// CheckImage says whether the configuration belongs to an image of that
// platform with that many layers.
func (c *ImageConfig) CheckImage(want Platform, layers int) error {
	if c.OS != want.OS || c.Architecture != want.Architecture {
		return fmt.Errorf("image configuration: os, architecture: expected %s, got %q: the image is for another platform", want, clip(c.OS+"/"+c.Architecture))
	}
	if len(c.RootFS.DiffIDs) != layers {
		return fmt.Errorf("image configuration: rootfs.diff_ids: expected %d, one for each layer of the manifest, got %d", layers, len(c.RootFS.DiffIDs))
	}
	return nil
}
