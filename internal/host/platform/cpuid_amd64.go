package platform

func cpuid(leaf uint32) (eax, ebx, ecx, edx uint32)
