// floor: the kernel's own price for a sandbox, and so the least that any
// runtime can take. One clone with every namespace, a read-only root file
// system with /dev, /proc and /tmp, no capabilities, no new privileges, a
// filter; then the command. No limits, no checks, no errors worth reading.
//
//   floor [-s] ROOTFS COMMAND [ARG...]     -s: load the BPF filter on descriptor 3
//
// As root, ids 0.. map to 100000..; as anyone else, 0 maps to the caller.

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(long result, const char *what)
{
	if (result >= 0)
		return;
	perror(what);
	_exit(125);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	must(fd, path);
	must(write(fd, text, strlen(text)), path);
	close(fd);
}

static void map_ids(long pid, uid_t uid, gid_t gid)
{
	char path[64], map[64];

	if (uid) {
		snprintf(path, sizeof path, "/proc/%ld/setgroups", pid);
		put(path, "deny");
	}
	snprintf(path, sizeof path, "/proc/%ld/uid_map", pid);
	snprintf(map, sizeof map, uid ? "0 %d 1" : "0 100000 65536", uid);
	put(path, map);
	snprintf(path, sizeof path, "/proc/%ld/gid_map", pid);
	snprintf(map, sizeof map, uid ? "0 %d 1" : "0 100000 65536", gid);
	put(path, map);
}

static void make_root(const char *root)
{
	static const char *const nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
	char from[32], to[32];

	must(mount("", "/", 0, MS_REC | MS_PRIVATE, 0), "private propagation");
	must(mount(root, root, 0, MS_BIND, 0), "bind root");
	must(chdir(root), "chdir");
	must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=64k"), "/dev");
	for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
		snprintf(from, sizeof from, "/dev/%s", nodes[i]);
		snprintf(to, sizeof to, "dev/%s", nodes[i]);
		int fd = open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
		must(fd, to);
		close(fd);
		must(mount(from, to, 0, MS_BIND, 0), from);
	}
	must(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0), "/proc");
	must(mount("tmpfs", "tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=64m"), "/tmp");
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount old root");
	must(mount("", "/", 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0), "read-only root");
	must(chdir("/"), "chdir /");
}

static void load_filter(int fd)
{
	static struct sock_filter code[16384];
	ssize_t size = read(fd, code, sizeof code);

	must(size, "read filter");
	struct sock_fprog program = {size / sizeof *code, code};
	must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), "seccomp");
	close(fd);
}

int main(int argc, char **argv)
{
	int filter = argc > 1 && !strcmp(argv[1], "-s"), status, gate[2];

	argv += 1 + filter;
	if (argc < 3 + filter)
		return 125;
	uid_t uid = getuid();
	gid_t gid = getgid();
	must(pipe2(gate, O_CLOEXEC), "pipe");
	long pid = syscall(SYS_clone, SIGCHLD | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET |
			   CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP, 0, 0, 0, 0);
	must(pid, "clone");
	if (!pid) {
		char byte;

		close(gate[1]);
		must(read(gate[0], &byte, 1), "gate");
		must(setresgid(0, 0, 0), "setresgid");
		must(setresuid(0, 0, 0), "setresuid");
		make_root(argv[0]);
		must(sethostname("sandbox", 7), "sethostname");
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
		for (int cap = 0; cap <= 40; cap++)
			prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
		if (filter)
			load_filter(3);
		execv(argv[1], argv + 1);
		_exit(127);
	}
	map_ids(pid, uid, gid);
	must(write(gate[1], "", 1), "open gate");
	must(waitpid(pid, &status, 0), "waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
