package vmm

// addBalloon gives the machine the device through which its guest says which
// pages it has no use for (free page reporting), so that the host has the memory
// back: what a boot or a workload once needed is not held for ever. Nothing is
// asked of the guest through it.
//
// Confidential machines are without: their private pages belong to the guest
// until it gives each of them up itself, which Linux does not do with free ones.
func (m *Machine) addBalloon(p *plan) {
	if m.Confidential != nil {
		return
	}
	p.add("-device", options("virtio-balloon-pci", "id", "balloon", "free-page-reporting", "on"))
}
