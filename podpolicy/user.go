package podpolicy

import (
	"fmt"
	"iter"
	"slices"
	"strings"
)

// ResolveUser reads an image's User ("", user, uid, user:group, uid:gid and the
// mixed forms; OCI image specification, config.User) with the contents of the
// image's /etc/passwd and /etc/group, nil where there are none. Without a group
// the user's primary group is taken, or 0, and the groups that list the user by
// name; with one there are no others.
func ResolveUser(spec string, passwd, group []byte) (User, error) {
	if len(passwd) > maxPasswdBytes || len(group) > maxPasswdBytes {
		return User{}, fmt.Errorf("/etc/passwd or /etc/group of the image is larger than %d bytes", maxPasswdBytes)
	}
	name, groupName, hasGroup := strings.Cut(spec, ":")
	if name == "" && spec != "" || hasGroup && groupName == "" {
		return User{}, fmt.Errorf("expected USER or USER:GROUP, got %s", quote(spec))
	}
	var user User
	uid, numeric := parseNumber(orDefault(name, "0"))
	found := false
	var login string
	for f := range records(passwd, 4) {
		id, ok := parseNumber(f[2])
		named := name != "" && f[0] == name
		if !ok || !named && (!numeric || id != uid) {
			continue
		}
		gid, ok := parseNumber(f[3])
		if !ok {
			return User{}, fmt.Errorf("/etc/passwd of the image gives user %s the group %s, which is no number", quote(f[0]), quote(f[3]))
		}
		user, login, found = User{UID: id, GID: gid}, f[0], true
		break
	}
	switch {
	case !found && !numeric:
		return User{}, fmt.Errorf("/etc/passwd of the image has no user %s", quote(name))
	case !found:
		user.UID = uid
	}
	if !hasGroup {
		user.Groups = memberships(login, group)
		if len(user.Groups) > maxGroups {
			return User{}, fmt.Errorf("/etc/group of the image puts user %s in more than %d groups", quote(login), maxGroups)
		}
		return user, nil
	}
	gid, numeric := parseNumber(groupName)
	for f := range records(group, 3) {
		if id, ok := parseNumber(f[2]); ok && f[0] == groupName {
			user.GID = id
			return user, nil
		}
	}
	if !numeric {
		return User{}, fmt.Errorf("/etc/group of the image has no group %s", quote(groupName))
	}
	user.GID = gid
	return user, nil
}

// memberships lists the groups that name login.
func memberships(login string, group []byte) []uint32 {
	var groups []uint32
	if login == "" {
		return nil
	}
	for f := range records(group, 4) {
		if id, ok := parseNumber(f[2]); ok && slices.Contains(strings.Split(f[3], ","), login) {
			groups = append(groups, id)
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups)
}

// records yields the lines of a passwd or group file that have at least n
// fields; others are skipped, as the C library does.
func records(data []byte, n int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range strings.SplitSeq(string(data), "\n") {
			if f := strings.Split(strings.TrimSpace(line), ":"); len(f) >= n && f[0] != "" && f[0][0] != '#' && !yield(f) {
				return
			}
		}
	}
}

func parseNumber(s string) (uint32, bool) {
	n, err := parseDigits(s)
	return uint32(n & 0xffffffff), err == nil && n <= maxID
}
