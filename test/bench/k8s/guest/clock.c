// The shortest boot that Linux and a C library allow: what a guest agent is measured against.
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/reboot.h>
#include <x86intrin.h>
int main(void)
{
	unsigned long long tsc = __rdtsc();
	char line[64];
	snprintf(line, sizeof line, "tsc=%llu\n", tsc);
	iopl(3);
	outsb(0xe9, line, strlen(line));
	return reboot(RB_POWER_OFF);
}
