package job

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

// check holds what depends on more than one field, as far as the job alone
// decides it; what depends on the host is the plan's part.
func (d *decoder) check() {
	d.checkMode()
	d.checkRuntime()
	d.checkResources()
	d.checkIDs()
	d.checkNetwork()
	d.checkMounts()
	d.checkSecrets()
	d.checkProbes()
	d.checkSecurity()
	d.checkOwnFile()
}

func (d *decoder) given(path string) bool {
	_, ok := d.j.Ranges[path]
	return ok
}

// refuse reports something that the job's mode does not allow.
func (d *decoder) refuse(path, what, remedy string) {
	d.r.Error(d.at(path), "Refused in mode "+string(d.j.Mode), fmt.Sprintf("Mode %s (%s) does not allow %s. %s", d.j.Mode, d.j.Where("mode"), what, remedy))
}

// need reports something that the job's mode demands.
func (d *decoder) need(path, what, remedy string) {
	d.r.Error(d.at(path), "Required in mode "+string(d.j.Mode), fmt.Sprintf("Mode %s (%s) needs %s. %s", d.j.Mode, d.j.Where("mode"), what, remedy))
}

func (d *decoder) checkMode() {
	j := d.j
	if !j.Mode.Strict() {
		return
	}
	if len(j.AllowDegraded) > 0 {
		d.refuse("allow_degraded", "degraded protections", "Remove the list, or write mode = \"agent\".")
	}
	if j.Network.Backend == "host" {
		d.refuse("network", "the host's network", `Write network "none" { ... } or name a network plugin.`)
	}
	if s := j.Security.Seccomp; s != nil && s.Mode == "trace" {
		d.refuse("security.seccomp.mode", "seccomp in trace mode", `Trace in mode agent, then write mode = "enforce".`)
	}
	if j.Namespaces.User == "host" {
		d.refuse("namespaces.user", "running without a user namespace", `Write user = "auto".`)
	}
	if j.Security.NoDefaultLandlock {
		d.refuse("security.no_default_landlock", "giving up the default Landlock rules", "Remove the line; rules in a landlock block add to the default.")
	}
	if b := j.Network.Backend; b != "none" && b != "host" && len(j.Network.DNS) == 0 {
		d.need("network", "the DNS servers to be named", `Write dns = ["10.0.0.1"] in the network block.`)
	}
	if j.Mode == ModeProduction {
		d.checkProduction()
	}
}

func (d *decoder) checkProduction() {
	j := d.j
	var missing []string
	if j.Resources.Memory == nil {
		missing = append(missing, `memory = "512MiB"`)
	}
	if j.Resources.CPUs == 0 {
		missing = append(missing, "cpus = 1.5")
	}
	if j.Resources.Pids == nil {
		missing = append(missing, "pids = 256")
	}
	if len(missing) > 0 {
		d.need("resources", "limits of memory, cpus and pids", fmt.Sprintf("Write for instance %s in resources { ... }.", strings.Join(missing, ", ")))
	}
	switch {
	case j.Rootfs == nil:
		d.need("job", "a root file system of its own", `Write a rootfs block with path = "./rootfs" and digest = "sha256:...".`)
	case j.Rootfs.Digest == "" && !d.given("rootfs.digest"):
		d.need("rootfs", "the digest of the root file system", "Write digest = \"sha256:...\" with what nucleus rootfs digest prints.")
	}
	if s := j.Security.Seccomp; s != nil && s.Profile != "" && s.SHA256 == "" && !d.given("security.seccomp.sha256") {
		d.need("security.seccomp.profile", "policy files pinned by their digest", "Write sha256 = \"...\" with what sha256sum prints for the profile.")
	}
	for _, m := range []struct {
		path string
		maps []IDMap
	}{{"namespaces.uid_map", j.Namespaces.UIDMap}, {"namespaces.gid_map", j.Namespaces.GIDMap}} {
		for _, l := range m.maps {
			if l.Host == 0 {
				d.refuse(m.path, "id 0 of the host in a sandbox", `Map to a subordinate range, for instance ["0:100000:65536"].`)
			}
		}
	}
	if w := j.Workspace; w != nil && w.Exec && w.Mode != "bind-ro" {
		d.refuse("workspace.exec", "a workspace that is writable and executable", `Write exec = false, or mode = "bind-ro".`)
	}
	for _, t := range j.Tmpfs {
		if t.Exec != nil && *t.Exec {
			d.refuse(fmt.Sprintf("tmpfs[%q].exec", t.Target), "a tmpfs that is executable", "Write exec = false.")
		}
	}
	for _, s := range j.Secrets {
		if s.Env != "" {
			d.refuse(fmt.Sprintf("secret[%q].env", s.Name), "secrets in the environment", fmt.Sprintf("Write target = %q and let the program read the file.", secretDir+"/"+s.Name))
		}
	}
}

func (d *decoder) checkRuntime() {
	j := d.j
	if j.Trust == "untrusted" && j.Runtime == nil {
		at := "trust"
		if d.given("runtime") {
			at = "runtime"
		}
		d.r.Error(d.at(at), "Untrusted job on native runtime", `The native runtime shares the host's kernel. Write runtime "gvisor" {} for untrusted code, or trust = "trusted" if this code may use it.`)
	}
	if s := j.Security.Seccomp; j.Runtime != nil && s != nil && s.Mode == "trace" {
		d.r.Error(d.at("security.seccomp.mode"), "Trace needs the native runtime", fmt.Sprintf("With runtime %s the workload's system calls do not reach the kernel's filter. Remove mode = \"trace\", or trace with the native runtime.", hclread.Quote(j.Runtime.Plugin)))
	}
}

func (d *decoder) checkResources() {
	r := d.j.Resources
	if r.MemoryHigh != nil && r.Memory != nil && *r.MemoryHigh > *r.Memory {
		d.r.Error(d.at("resources.memory_high"), "Memory_high above memory", fmt.Sprintf("memory_high is where slowing begins, memory where the kernel kills: write at most %s.", hclread.FormatSize(*r.Memory)))
	}
	if r.Swap != nil && r.Memory != nil && *r.Swap > math.MaxInt64-*r.Memory {
		d.r.Error(d.at("resources.swap"), "Swap too large", fmt.Sprintf("memory and swap together are more than %d bytes, the most that can be counted.", int64(math.MaxInt64)))
	}
	if r.Swap != nil && r.Memory == nil && !d.given("resources.memory") {
		d.r.Error(d.at("resources.swap"), "Swap without memory", `Swap is counted beyond a limit of memory: write memory = "512MiB" beside it.`)
	}
}

func (d *decoder) checkIDs() {
	j := d.j
	n := j.Namespaces
	if n.User != "map" {
		for _, k := range []string{"namespaces.uid_map", "namespaces.gid_map"} {
			if d.given(k) {
				d.r.Error(d.at(k), "Id map without user = map", `Id maps are used with user = "map" only: write that, or remove the maps.`)
			}
		}
		return
	}
	if !d.uidMap || !d.gidMap {
		d.r.Error(d.at("namespaces.user"), "Id map missing", `user = "map" needs both maps: write uid_map = ["0:100000:65536"] and gid_map = ["0:100000:65536"].`)
		return
	}
	user, group, grouped := strings.Cut(j.User, ":")
	d.checkMapped("user", "uid", user, n.UIDMap)
	if grouped {
		d.checkMapped("user", "gid", group, n.GIDMap)
	}
	for i, g := range j.Groups {
		d.checkMapped(fmt.Sprintf("groups[%d]", i), "gid", g, n.GIDMap)
	}
}

// checkMapped looks at numbers only: names are known to the root file system.
func (d *decoder) checkMapped(path, kind, s string, maps []IDMap) {
	n, ok := grammar.ID(s)
	if !ok || len(maps) == 0 {
		return
	}
	for _, m := range maps {
		if n >= m.Container && uint64(n) < uint64(m.Container)+uint64(m.Size) {
			return
		}
	}
	d.r.Error(d.at(path), "Id not mapped", fmt.Sprintf("The %s %d is in no line of %s_map (%s): add one that covers it, or choose another.", kind, n, kind, d.j.Where("namespaces."+kind+"_map")))
}

func (d *decoder) checkNetwork() {
	j := d.j
	switch b := j.Network.Backend; b {
	case "none", "host":
		why := map[string]string{
			"none": `A job without a network has nothing to do with it: name a network plugin, for instance network "netuserspace" { ... }, or remove it.`,
			"host": `On the host's network it can't be enforced: name a network plugin, for instance network "netuserspace" { ... }, or remove it.`,
		}[b]
		refused := []string{"network.config", "network.publish[0]", "network.egress", "network.on_failure"}
		if b == "none" {
			refused = append(refused, "network.dns")
		}
		for _, k := range refused {
			if d.given(k) {
				d.r.Error(d.at(k), "Needs a network", why)
			}
		}
	default:
		d.checkLowPorts()
	}
}

// checkLowPorts: the ports below net.ipv4.ip_unprivileged_port_start (ip(7)), which is
// 1024 in a new network namespace and read-only in the sandbox, take a capability.
func (d *decoder) checkLowPorts() {
	j := d.j
	if j.Runtime != nil || slices.Contains(j.Security.Keep, "CAP_NET_BIND_SERVICE") {
		return // the kernel of a runtime has rules of its own
	}
	for i, p := range j.Network.Publish {
		if p.Container > 0 && p.Container < 1024 {
			d.r.Warn(d.at(fmt.Sprintf("network.publish[%d].container", i)), "Port that nobody may listen at", `Below 1024 a program needs a capability for it. Choose a port from 1024 on, or write keep = ["NET_BIND_SERVICE"] in a capabilities block of security.`)
		}
	}
}

func (d *decoder) checkSecrets() {
	seen := map[string]string{}
	for _, s := range d.j.Secrets {
		if s.Env == "" {
			continue
		}
		at := fmt.Sprintf("secret[%q].env", s.Name)
		_, plain := d.j.Env[s.Env]
		switch {
		case plain:
			d.r.Error(d.at(at), "Variable set twice", fmt.Sprintf("%s is in env too (%s): remove one.", s.Env, d.j.Where("env")))
		case seen[s.Env] != "":
			d.r.Error(d.at(at), "Variable set twice", fmt.Sprintf("%s is set by the secret %s too: choose another variable.", s.Env, hclread.Quote(seen[s.Env])))
		case d.j.Mode != ModeProduction:
			d.r.Warn(d.at(at), "Secret in the environment", fmt.Sprintf("Every child process inherits it and /proc shows it. Write target = %q instead.", secretDir+"/"+s.Name))
		}
		seen[s.Env] = s.Name
	}
}

func (d *decoder) checkProbes() {
	j := d.j
	if !j.Init {
		for _, block := range []string{"readiness", "health"} {
			for _, kind := range []string{"exec", "tcp", "http"} {
				if k := block + "." + kind; d.given(k) {
					or := "or leave the block out"
					if block == "readiness" {
						or = "or use readiness { notify = true }"
					}
					d.r.Error(d.at(k), "Probe needs init", fmt.Sprintf("Probes are run by the sandbox's init, which init = false (%s) leaves out. Write init = true, %s.", j.Where("init"), or))
				}
			}
		}
	}
	if j.Health != nil && j.Health.OnFailure == "restart" && j.Restart == nil {
		d.r.Error(d.at("health.on_failure"), "Restart without a policy", `Say how often: restart { on = "failure" } in the job.`)
	}
	_, notify := j.Env["NOTIFY_SOCKET"]
	if notify && (j.SDNotify || j.Readiness != nil && j.Readiness.Notify) {
		d.r.Error(d.at("env"), "NOTIFY_SOCKET set twice", "Nucleus sets NOTIFY_SOCKET for notifications: remove it from env.")
	}
	for _, name := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		if _, given := j.Env[name]; given && j.SocketActivation {
			d.r.Error(d.at("env"), name+" set twice", fmt.Sprintf("Nucleus sets %s for socket_activation: remove it from env.", name))
		}
	}
}

func (d *decoder) checkSecurity() {
	j := d.j
	for i, c := range j.Security.Keep {
		at := fmt.Sprintf("security.capabilities.keep[%d]", i)
		switch {
		case !grammar.Dangerous(c):
		case j.Mode.Strict():
			d.refuse(at, c, "A program that holds it can leave its limits: remove it.")
		default:
			d.r.Warn(d.at(at), "Dangerous capability kept", fmt.Sprintf("A program that holds %s can leave its limits; modes strict-agent and production refuse it.", c))
		}
	}
	for i, r := range j.Security.Landlock {
		if !slices.Contains(r.Access, "write") || !slices.Contains(r.Access, "execute") {
			continue
		}
		at := fmt.Sprintf("security.landlock.rule[%d].access", i)
		if j.Mode.Strict() {
			d.refuse(at, "a rule with write and execute", "A program could write code there and run it: give the two to different paths.")
		} else {
			d.r.Warn(d.at(at), "Rule with write and execute", "A program can write code there and run it; modes strict-agent and production refuse it.")
		}
	}
	if j.Security.NoDefaultLandlock && !j.Mode.Strict() {
		d.r.Warn(d.at("security.no_default_landlock"), "Default Landlock rules off", "Only the rules of this job limit the file system then.")
	}
}

// checkOwnFile looks for a job file that the job may rewrite for its next run.
func (d *decoder) checkOwnFile() {
	j := d.j
	if j.File == "" || j.File == "-" || j.File == "<stdin>" {
		return
	}
	found := func(path, source string) {
		what := fmt.Sprintf("a job that may write its own file: %s is in %s", hclread.Quote(j.File), hclread.Quote(source))
		if j.Mode.Strict() {
			d.refuse(path, what, "Keep the file elsewhere, or give the directory read-only.")
			return
		}
		d.r.Warn(d.at(path), "Job may write its own file", fmt.Sprintf("%s is in %s, so the sandbox can change what the next run does. Keep the file elsewhere.", hclread.Quote(j.File), hclread.Quote(source)))
	}
	if w := j.Workspace; w != nil && w.Mode == "bind-rw" && w.Path != "" && pathname.Within(j.Dir, w.Path) {
		found("workspace.path", w.Path)
	}
	for _, v := range j.Volumes {
		if !v.ReadOnly && v.Source != "" && pathname.Within(j.Dir, v.Source) {
			found(fmt.Sprintf("volume[%q].source", v.Name), v.Source)
		}
	}
}
