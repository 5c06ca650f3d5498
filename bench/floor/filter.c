// filter: one filter for all peers, in the two forms they take: BPF to the file
// named by the first argument, an OCI runtime-spec seccomp object to the second.
//
// It is of the size and shape that container engines load by default: deny with
// EPERM, allow every system call that libseccomp knows but for those below, for
// the native and the two older x86 architectures, in libseccomp's default layout.

#include <fcntl.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const denied[] = {
	"acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module",
	"fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "get_kernel_syms",
	"init_module", "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp",
	"kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mount", "mount_setattr", "move_mount",
	"move_pages", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open",
	"personality", "pivot_root", "process_vm_readv", "process_vm_writev", "ptrace", "query_module",
	"quotactl", "reboot", "request_key", "setdomainname", "sethostname", "setns", "settimeofday", "stime",
	"swapoff", "swapon", "sysfs", "_sysctl", "umount", "umount2", "unshare", "uselib", "userfaultfd",
	"ustat", "vhangup", "vm86", "vm86old",
};

static int is_denied(const char *name)
{
	for (size_t i = 0; i < sizeof denied / sizeof *denied; i++)
		if (!strcmp(name, denied[i]))
			return 1;
	return 0;
}

static void must(int result, const char *what)
{
	if (result >= 0)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(-result));
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	FILE *oci = fopen(argv[2], "w");
	int bpf = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(1));
	if (!oci || bpf < 0 || !filter)
		return 1;
#ifdef __x86_64__
	must(seccomp_arch_add(filter, SCMP_ARCH_X86), "x86");
	must(seccomp_arch_add(filter, SCMP_ARCH_X32), "x32");
	fprintf(oci, "{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"defaultErrnoRet\":1,"
		"\"architectures\":[\"SCMP_ARCH_X86_64\",\"SCMP_ARCH_X86\",\"SCMP_ARCH_X32\"],"
		"\"syscalls\":[{\"action\":\"SCMP_ACT_ALLOW\",\"names\":[");
#else
	fprintf(oci, "{\"defaultAction\":\"SCMP_ACT_ERRNO\",\"defaultErrnoRet\":1,"
		"\"syscalls\":[{\"action\":\"SCMP_ACT_ALLOW\",\"names\":[");
#endif
	const char *separator = "";
	for (int number = 0; number < 600; number++) {
		char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, number);
		if (name && !is_denied(name)) {
			must(seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0), name);
			fprintf(oci, "%s\"%s\"", separator, name);
			separator = ",";
		}
		free(name);
	}
	fprintf(oci, "]}]}\n");
	must(seccomp_export_bpf(filter, bpf), "export");
	return fclose(oci) ? 1 : 0;
}
