package plan

import "testing"

func TestAccountsResolveByTheRulesOfAJob(t *testing.T) {
	a := Accounts{Passwd: []byte(passwd), Group: []byte(group)}
	for s, want := range map[string][2]uint32{
		"app": {1001, 1002}, "app:staff": {1001, 50}, "app:7": {1001, 7}, "root": {0, 0},
		"1001": {1001, 1002}, "1001:staff": {1001, 50}, "4": {4, 4}, "4:5": {4, 5},
	} {
		if uid, gid, err := a.Resolve(s); err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("%s: %d:%d, %v; want %v", s, uid, gid, err, want)
		}
	}
	for s, want := range map[string]string{
		"nobody": `user "nobody" is not in the sandbox's /etc/passwd`, "": `user "" is not in the sandbox's /etc/passwd`,
		"bad": `user "bad" is not in the sandbox's /etc/passwd`, "# comment": `user "# comment" is not in the sandbox's /etc/passwd`,
		"app:": `group "" is not in the sandbox's /etc/group`, "app:app:1": `group "app:1" is not in the sandbox's /etc/group`,
		"-1": `user "-1" is not in the sandbox's /etc/passwd`, "4294967296": `user "4294967296" is not in the sandbox's /etc/passwd`,
	} {
		if uid, gid, err := a.Resolve(s); err == nil || err.Error() != want {
			t.Errorf("%q: %d:%d, %v; want %s", s, uid, gid, err, want)
		}
	}
	if _, _, err := (Accounts{}).Resolve("root"); err == nil {
		t.Error("without the files a name is found")
	}
}
