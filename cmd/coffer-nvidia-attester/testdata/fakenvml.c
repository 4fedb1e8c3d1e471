/* A libnvidia-ml.so.1 without a GPU, for tests: it serves a report and a
 * certificate chain out of the files FAKE_NVML_REPORT and FAKE_NVML_CHAIN,
 * whatever the nonce, and writes the nonce that it was asked for to
 * FAKE_NVML_NONCE. FAKE_NVML_COUNT is the number of GPUs, FAKE_NVML_ARCH their
 * architecture, FAKE_NVML_FAIL the function that fails, with the code
 * FAKE_NVML_CODE. Names, types and sizes are those of nvml.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct certificate {
	unsigned int chain_size, attestation_size;
	unsigned char chain[0x1000], attestation[0x1400];
};

struct report {
	unsigned int cec_present, size, cec_size;
	unsigned char nonce[0x20], report[0x2000], cec[0x1000];
};

static int number(const char *name, int otherwise)
{
	const char *v = getenv(name);
	return v ? atoi(v) : otherwise;
}

static int outcome(const char *function)
{
	const char *v = getenv("FAKE_NVML_FAIL");
	return v && !strcmp(v, function) ? number("FAKE_NVML_CODE", 999) : 0;
}

static unsigned int load(const char *name, unsigned char *to, size_t size)
{
	const char *path = getenv(name);
	FILE *f = path ? fopen(path, "rb") : NULL;
	size_t n = f ? fread(to, 1, size, f) : 0;
	if (f)
		fclose(f);
	return n;
}

int nvmlInit_v2(void) { return outcome("init"); }
int nvmlShutdown(void) { return outcome("shutdown"); }
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Unknown Error"; }

int nvmlDeviceGetCount_v2(unsigned int *n)
{
	*n = number("FAKE_NVML_COUNT", 1);
	return outcome("count");
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **handle)
{
	*handle = (void *)(unsigned long)(0x1000 + i);
	return outcome("handle");
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned int size)
{
	snprintf(text, size, "GPU-%lx", (unsigned long)handle);
	return outcome("uuid");
}

int nvmlDeviceGetArchitecture(void *handle, unsigned int *arch)
{
	(void)handle;
	*arch = number("FAKE_NVML_ARCH", 9);
	return outcome("arch");
}

int nvmlDeviceGetConfComputeGpuCertificate(void *handle, struct certificate *c)
{
	(void)handle;
	c->chain_size = 3;
	memset(c->chain, 'x', sizeof c->chain);
	c->attestation_size = load("FAKE_NVML_CHAIN", c->attestation, sizeof c->attestation);
	c->attestation_size += number("FAKE_NVML_LONGER", 0);
	return outcome("certificate");
}

int nvmlDeviceGetConfComputeGpuAttestationReport(void *handle, struct report *r)
{
	const char *path = getenv("FAKE_NVML_NONCE");
	FILE *f = path ? fopen(path, "wb") : NULL;
	(void)handle;
	if (f) {
		fwrite(r->nonce, 1, sizeof r->nonce, f);
		fclose(f);
	}
	r->size = load("FAKE_NVML_REPORT", r->report, sizeof r->report);
	r->size += number("FAKE_NVML_LONGER", 0);
	memset(r->cec, 'x', sizeof r->cec);
	return outcome("report");
}
