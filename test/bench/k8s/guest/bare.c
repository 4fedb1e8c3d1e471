// An init that does nothing: what is left is the kernel and its machine.
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	puts("bare guest up");
	fflush(stdout);
	for (;;)
		pause();
}
