package container

import (
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The default system call filter lets ordinary programs run and answers
// everything else with EPERM, and calls that are newer than the filter with
// ENOSYS where a program falls back on it. It is an allow-list: a call that
// nobody has decided about is denied.
//
// allowedCalls need no privilege, or check it themselves on objects the
// container owns.
const allowedCalls = `
accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown clock_adjtime
clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve
execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate
futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd
getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority
getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self
lchown lgetxattr link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack
membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt
mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap msgctl msgget msgrcv msgsnd
mseal msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64
process_madvise process_mrelease pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom
recvmmsg recvmsg remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select
semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address
setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit
setsid setsockopt setuid setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice
stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate
umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev
ptrace process_vm_readv process_vm_writev`

// capabilityCalls are let through to a container that holds the capability
// the kernel asks for.
func capabilityCalls() map[string]string {
	return map[string]string{
		"CAP_BPF":                "bpf",
		"CAP_CHECKPOINT_RESTORE": "kcmp",
		"CAP_DAC_READ_SEARCH":    "open_by_handle_at",
		"CAP_PERFMON":            "perf_event_open",
		"CAP_SYS_ADMIN": `bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
			open_tree perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns statmount listmount
			syslog umount umount2 unshare`,
		"CAP_SYS_BOOT":       "reboot",
		"CAP_SYS_CHROOT":     "chroot",
		"CAP_SYS_MODULE":     "delete_module finit_module init_module",
		"CAP_SYS_NICE":       "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
		"CAP_SYS_PACCT":      "acct",
		"CAP_SYS_PTRACE":     "kcmp pidfd_getfd",
		"CAP_SYS_RAWIO":      "ioperm iopl",
		"CAP_SYS_TIME":       "clock_settime settimeofday stime",
		"CAP_SYS_TTY_CONFIG": "vhangup",
		"CAP_SYSLOG":         "syslog",
	}
}

// Values of system call arguments.
const (
	// namespaceFlags are the CLONE_NEW… flags of clone(2).
	namespaceFlags = 0x7E020000
	enosys         = 38
	eperm          = 1
)

// defaultSeccomp builds the filter for a container with these capabilities.
func defaultSeccomp(caps []string) *specs.LinuxSeccomp {
	allow := strings.Fields(allowedCalls)
	for name, calls := range capabilityCalls() {
		if slices.Contains(caps, name) {
			allow = append(allow, strings.Fields(calls)...)
		}
	}
	slices.Sort(allow)
	allow = slices.Compact(allow)
	errno, noCall := uint(eperm), uint(enosys)
	s := &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &errno,
		Syscalls: []specs.LinuxSyscall{
			{Names: allow, Action: specs.ActAllow},
			// The host is not a peer a container may dial: the agent's own
			// channel to it may be a vsock. A filter sees 64 bits of an
			// argument of which the kernel takes 32, so the rule must be
			// about what is let through.
			{Names: []string{"socket"}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: unix.AF_VSOCK, Op: specs.OpLessThan}}},
			{Names: []string{"socket"}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: unix.AF_XDP, Op: specs.OpEqualTo}}},
			{Names: []string{"personality"}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0, Op: specs.OpEqualTo}}},
			{Names: []string{"personality"}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0xffffffff, Op: specs.OpEqualTo}}},
		},
	}
	if !slices.Contains(caps, "CAP_SYS_ADMIN") {
		s.Syscalls = append(s.Syscalls,
			specs.LinuxSyscall{Names: []string{"clone"}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: namespaceFlags, ValueTwo: 0, Op: specs.OpMaskedEqual}}},
			// Its flags are in memory, where a filter cannot look; C
			// libraries fall back to clone.
			specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &noCall})
	}
	// Calls of other architectures (32-bit, x32) kill: images of these are not
	// run, and their tables are a favourite way around filters.
	if runtime.GOARCH == "amd64" {
		s.Architectures = []specs.Arch{specs.ArchX86_64}
	}
	return s
}
