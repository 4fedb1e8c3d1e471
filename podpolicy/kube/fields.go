package kube

import (
	"slices"
	"strings"
)

// Decision says what becomes of a field of a PodSpec.
type Decision string

// The decisions. A pinned field is in the policy as it is written. A slot leaves
// its value to the host. A derived field has an effect on the policy, but is not
// in it. A refused one is an error. An ignored one is not the guest's matter.
const (
	Pinned  Decision = "pinned"
	Slot    Decision = "slot"
	Derived Decision = "derived"
	Refused Decision = "refused"
	Ignored Decision = "ignored"
)

// Field is the decision on a field, or on everything below it.
type Field struct {
	// Path in a PodSpec with [] for the elements of lists and {} for those of
	// maps. What is said of containers holds for initContainers and
	// ephemeralContainers, of livenessProbe for readinessProbe and
	// startupProbe, of postStart for preStop.
	Path     string
	Decision Decision
	// How it is mapped; of a refused or ignored field, why.
	How string
	// Only lists the values that are taken where not all are; of a refused
	// field, those that mean what its absence means.
	Only []string
	// Remedy is what to do about a value that is not taken.
	Remedy string
}

// Takes reports whether a field may have a value.
func (f *Field) Takes(value string) bool {
	if f.Decision == Refused || len(f.Only) > 0 {
		return slices.Contains(f.Only, value)
	}
	return true
}

const (
	node    = "the node's volumes are the host's"
	usePVC  = "use a claim with volumeMode: Block and the annotation " + AnnotationMount + "VOLUME, or an emptyDir"
	placing = "where the pod runs is the host's choice"
	linux   = "the guest runs Linux"
)

// Fields is the decision on every field of a PodSpec (k8s.io/api core/v1), the
// source of docs/prepare.md.
func Fields() []Field {
	return slices.Concat(podFields(), containerFields(), securityFields(), volumeFields())
}

func podFields() []Field {
	return []Field{
		{Path: "restartPolicy", Decision: Pinned, How: "`allow.restarts` of every container: Always, OnFailure, Never; of init containers onFailure, or never"},
		{Path: "terminationGracePeriodSeconds", Decision: Ignored, How: "the host may end a pod at any time"},
		{Path: "activeDeadlineSeconds", Decision: Ignored, How: "the host may end a pod at any time"},
		{Path: "dnsPolicy", Decision: Pinned, How: "None: `network.dns` is pinned to dnsConfig; else it is the slot `dns`"},
		{Path: "dnsConfig.nameservers[]", Decision: Pinned, How: "`network.dns.servers` with dnsPolicy None; else in the slot `dns`"},
		{Path: "dnsConfig.searches[]", Decision: Pinned, How: "`network.dns.searches` with dnsPolicy None; else in the slot `dns`"},
		{Path: "dnsConfig.options[].name", Decision: Pinned, How: "`network.dns.options` with dnsPolicy None; else in the slot `dns`"},
		{Path: "dnsConfig.options[].value", Decision: Pinned, How: "`network.dns.options` with dnsPolicy None; else in the slot `dns`"},
		{Path: "hostAliases[].ip", Decision: Pinned, How: "`network.hosts`; without aliases there are no entries beside the pod's own"},
		{Path: "hostAliases[].hostnames[]", Decision: Pinned, How: "`network.hosts`"},
		{Path: "hostname", Decision: Pinned, How: "`pod.hostname`; without it the pod's name"},
		{Path: "subdomain", Decision: Derived, How: "the domain in `pod.hostname` with setHostnameAsFQDN; else it is the cluster's DNS that knows it"},
		{Path: "setHostnameAsFQDN", Decision: Derived, How: "`pod.hostname` is HOSTNAME.SUBDOMAIN.NAMESPACE.svc.*, since the manifest does not know the cluster's domain"},
		{Path: "hostnameOverride", Decision: Pinned, How: "`pod.hostname`"},
		{Path: "shareProcessNamespace", Decision: Pinned, How: "`pod.sharePID`"},
		{Path: "enableServiceLinks", Decision: Derived, How: "`serviceEnv` names the Services of the input, and always `kubernetes`; with false only that"},
		{Path: "serviceAccountName", Decision: Derived, How: "the value of spec.serviceAccountName in the environment; whether the token is mounted"},
		{Path: "serviceAccount", Decision: Derived, How: "the old name of serviceAccountName"},
		{Path: "automountServiceAccountToken", Decision: Derived, How: "unless false here or at the ServiceAccount: a files volume `" + tokenVolume + "` whose files are the host's"},
		{Path: "hostNetwork", Decision: Refused, How: "the guest has no network but its own", Only: []string{"false"}, Remedy: "remove it"},
		{Path: "hostPID", Decision: Refused, How: "the guest does not see the host's processes", Only: []string{"false"}, Remedy: "remove it"},
		{Path: "hostIPC", Decision: Refused, How: "the guest has no IPC with the host", Only: []string{"false"}, Remedy: "remove it"},
		{Path: "hostUsers", Decision: Ignored, How: "the pod VM is the boundary; users are those of the guest"},
		{Path: "os.name", Decision: Refused, How: linux, Only: []string{"linux"}, Remedy: "remove it"},
		{Path: "resourceClaims", Decision: Refused, How: "devices by dynamic allocation are the host's", Remedy: "remove it"},
		{Path: "resources.limits", Decision: Refused, How: "limits of a whole pod are not in a policy", Remedy: "give each container resources.limits"},
		{Path: "resources.requests", Decision: Ignored, How: "for scheduling"},
		{Path: "resources.claims", Decision: Refused, How: "devices by dynamic allocation are the host's", Remedy: "remove it"},
		{Path: "imagePullSecrets", Decision: Ignored, How: "the guest pulls images itself, with the credentials that initdata names (--credentials)"},
		{Path: "runtimeClassName", Decision: Ignored, How: "it chooses the runtime on the node; evidence shows what was chosen"},
		{Path: "nodeSelector", Decision: Ignored, How: placing},
		{Path: "nodeName", Decision: Ignored, How: placing},
		{Path: "affinity", Decision: Ignored, How: placing},
		{Path: "schedulerName", Decision: Ignored, How: placing},
		{Path: "tolerations", Decision: Ignored, How: placing},
		{Path: "topologySpreadConstraints", Decision: Ignored, How: placing},
		{Path: "schedulingGates", Decision: Ignored, How: placing},
		{Path: "schedulingGroup", Decision: Ignored, How: placing},
		{Path: "priorityClassName", Decision: Ignored, How: placing},
		{Path: "priority", Decision: Ignored, How: placing},
		{Path: "preemptionPolicy", Decision: Ignored, How: placing},
		{Path: "overhead", Decision: Ignored, How: "for scheduling"},
		{Path: "readinessGates", Decision: Ignored, How: "when a pod counts as ready is the control plane's matter"},
	}
}

func containerFields() []Field {
	return slices.Concat([]Field{
		{Path: "containers[].name", Decision: Pinned, How: "`containers[].name`; the role follows from the list and, of init containers, from restartPolicy Always (`sidecar`). Ephemeral containers are taken only with --ephemeral"},
		{Path: "containers[].image", Decision: Pinned, How: "`image.from`, and `image.digest`, which the tag stands for now"},
		{Path: "containers[].command[]", Decision: Pinned, How: "`args`, in place of the image's entrypoint and command; $(NAME) is expanded as the kubelet does"},
		{Path: "containers[].args[]", Decision: Pinned, How: "`args`, in place of the image's command; $(NAME) is expanded as the kubelet does"},
		{Path: "containers[].workingDir", Decision: Pinned, How: "`cwd`"},
		{Path: "containers[].ports", Decision: Ignored, How: "informative; the network is the host's. Forwarding through the agent needs `allow.portForward`"},
		{Path: "containers[].targetContainerName", Decision: Pinned, How: "`target`, of an ephemeral container; not needed with shareProcessNamespace"},
		{Path: "containers[].resources.limits{}", Decision: Pinned, How: "cpu and memory: `limits`; ephemeral-storage is the kubelet's matter; others are refused"},
		{Path: "containers[].resources.requests{}", Decision: Ignored, How: "for scheduling; the values in resourceFieldRef are those written here"},
		{Path: "containers[].resources.claims", Decision: Refused, How: "devices by dynamic allocation are the host's", Remedy: "remove it"},
		{Path: "containers[].resizePolicy", Decision: Ignored, How: "limits are pinned: a resize in place is refused by the guest"},
		{Path: "containers[].restartPolicy", Decision: Pinned, How: "`allow.restarts`; Always makes an init container a sidecar"},
		{Path: "containers[].restartPolicyRules", Decision: Refused, How: "a policy has no restart rule by exit code", Remedy: "use restartPolicy OnFailure"},
		{Path: "containers[].volumeDevices[].name", Decision: Pinned, How: "`devices[].volume`, or with a mount in the volume's annotation `mounts[].volume`"},
		{Path: "containers[].volumeDevices[].devicePath", Decision: Pinned, How: "`devices[].path`; with a mount in the volume's annotation the file system is mounted there instead"},
		{Path: "containers[].terminationMessagePath", Decision: Pinned, How: "`terminationMessagePath`: a file in the guest; the host reads it where it may read logs"},
		{Path: "containers[].terminationMessagePolicy", Decision: Ignored, How: "what the kubelet does with logs that it may read; where it may not, the message of a container that failed says so"},
		{Path: "containers[].imagePullPolicy", Decision: Ignored, How: "an image is its digest, whenever it is pulled"},
		{Path: "containers[].stdin", Decision: Pinned, How: "`allow.stdin`"},
		{Path: "containers[].stdinOnce", Decision: Derived, How: "standard input is given once in any case, unless `allow.attach`"},
		{Path: "containers[].tty", Decision: Pinned, How: "`terminal`"},
		{Path: "containers[].livenessProbe.exec.command[]", Decision: Pinned, How: "`allow.exec`, of which the host learns the exit code; $(NAME) is expanded with the literal values, as the kubelet does"},
		{Path: "containers[].livenessProbe.httpGet", Decision: Ignored, How: "the kubelet asks over the network"},
		{Path: "containers[].livenessProbe.tcpSocket", Decision: Ignored, How: "the kubelet asks over the network"},
		{Path: "containers[].livenessProbe.grpc", Decision: Ignored, How: "the kubelet asks over the network"},
		{Path: "containers[].lifecycle.postStart.exec.command[]", Decision: Pinned, How: "`allow.exec`, literally"},
		{Path: "containers[].lifecycle.postStart.httpGet", Decision: Ignored, How: "the kubelet asks over the network"},
		{Path: "containers[].lifecycle.postStart.tcpSocket", Decision: Ignored, How: "the kubelet asks over the network"},
		{Path: "containers[].lifecycle.postStart.sleep", Decision: Ignored, How: "the kubelet waits"},
		{Path: "containers[].lifecycle.stopSignal", Decision: Pinned, How: "`allow.signals`"},
	}, probeNumbers(), envFields(), mountFields())
}

func probeNumbers() []Field {
	var fields []Field
	for _, name := range []string{"initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold", "terminationGracePeriodSeconds"} {
		fields = append(fields, Field{Path: "containers[].livenessProbe." + name, Decision: Ignored, How: "when the kubelet asks, and what it makes of the answer"})
	}
	return fields
}

func envFields() []Field {
	return []Field{
		{Path: "containers[].env[].name", Decision: Pinned, How: "`env`, by name"},
		{Path: "containers[].env[].value", Decision: Pinned, How: "`value`, with $(NAME) expanded as the kubelet does; `expand` where it refers to what only the guest knows; `sealed` for a sealed secret"},
		{Path: "containers[].env[].valueFrom.fieldRef.apiVersion", Decision: Derived, How: "there is one", Only: []string{"", "v1"}, Remedy: "remove it"},
		{Path: "containers[].env[].valueFrom.fieldRef.fieldPath", Decision: Slot, How: "metadata.name `podName`, metadata.namespace `podNamespace`, metadata.uid `podUID`, spec.nodeName `nodeName`, status.hostIP(s) `hostIP(s)`, status.podIP(s) `ip(s)`; labels, annotations and spec.serviceAccountName are pinned"},
		{Path: "containers[].env[].valueFrom.resourceFieldRef.containerName", Decision: Derived, How: "whose resources are meant"},
		{Path: "containers[].env[].valueFrom.resourceFieldRef.resource", Decision: Pinned, How: "the number that the kubelet computes"},
		{Path: "containers[].env[].valueFrom.resourceFieldRef.divisor", Decision: Derived, How: "part of that number"},
		{Path: "containers[].env[].valueFrom.configMapKeyRef.name", Decision: Pinned, How: "the value in the input's ConfigMap"},
		{Path: "containers[].env[].valueFrom.configMapKeyRef.key", Decision: Pinned, How: "the value in the input's ConfigMap"},
		{Path: "containers[].env[].valueFrom.configMapKeyRef.optional", Decision: Derived, How: "whether the variable may be absent because it is absent from the input"},
		{Path: "containers[].env[].valueFrom.secretKeyRef.name", Decision: Pinned, How: "the value in the input's Secret: `sealed`, or a literal, which everybody can read, with a warning"},
		{Path: "containers[].env[].valueFrom.secretKeyRef.key", Decision: Pinned, How: "the value in the input's Secret"},
		{Path: "containers[].env[].valueFrom.secretKeyRef.optional", Decision: Derived, How: "whether the variable may be absent because it is absent from the input"},
		{Path: "containers[].env[].valueFrom.fileKeyRef", Decision: Refused, How: "the kubelet would read a file of a volume in the guest", Remedy: "use a ConfigMap, a Secret or a KBS resource"},
		{Path: "containers[].envFrom[].prefix", Decision: Derived, How: "part of the variables' names"},
		{Path: "containers[].envFrom[].configMapRef.name", Decision: Pinned, How: "a variable for each key of the input's ConfigMap"},
		{Path: "containers[].envFrom[].configMapRef.optional", Decision: Derived, How: "whether it may be absent because it is absent from the input"},
		{Path: "containers[].envFrom[].secretRef.name", Decision: Pinned, How: "a variable for each key of the input's Secret"},
		{Path: "containers[].envFrom[].secretRef.optional", Decision: Derived, How: "whether it may be absent because it is absent from the input"},
	}
}

func mountFields() []Field {
	return []Field{
		{Path: "containers[].volumeMounts[].name", Decision: Pinned, How: "`mounts[].volume`"},
		{Path: "containers[].volumeMounts[].mountPath", Decision: Pinned, How: "`mounts[].path`"},
		{Path: "containers[].volumeMounts[].readOnly", Decision: Pinned, How: "`mounts[].readOnly`; files are read-only in any case"},
		{Path: "containers[].volumeMounts[].recursiveReadOnly", Decision: Ignored, How: "nothing is mounted inside a volume"},
		{Path: "containers[].volumeMounts[].subPath", Decision: Pinned, How: "`mounts[].subPath`; of a volume of files one of them, or a directory of them, as it is when the container is created"},
		{Path: "containers[].volumeMounts[].subPathExpr", Decision: Pinned, How: "`mounts[].subPath`, where all of it is literal"},
		{Path: "containers[].volumeMounts[].mountPropagation", Decision: Refused, How: "no mounts pass between containers, or out of the guest", Only: []string{"None"}, Remedy: "remove it"},
	}
}

func securityFields() []Field {
	var fields []Field
	for _, at := range []string{"securityContext.", "containers[].securityContext."} {
		fields = append(fields,
			Field{Path: at + "runAsUser", Decision: Pinned, How: "`user.uid`; else the image's user"},
			Field{Path: at + "runAsGroup", Decision: Pinned, How: "`user.gid`; else the user's group in the image, or 0"},
			Field{Path: at + "runAsNonRoot", Decision: Derived, How: "checked when the policy is written"},
			Field{Path: at + "seccompProfile.type", Decision: Pinned, How: "`seccomp`: RuntimeDefault and nothing `default`, Unconfined `unconfined`", Only: []string{"RuntimeDefault", "Unconfined"}, Remedy: "the guest has no files of the node: use RuntimeDefault"},
			Field{Path: at + "seccompProfile.localhostProfile", Decision: Refused, How: "the guest has no files of the node", Remedy: "use RuntimeDefault"},
			Field{Path: at + "appArmorProfile.type", Decision: Derived, How: "the guest has no AppArmor; the pod VM is the boundary", Only: []string{"RuntimeDefault", "Unconfined"}, Remedy: "use RuntimeDefault"},
			Field{Path: at + "appArmorProfile.localhostProfile", Decision: Refused, How: "the guest has no files of the node", Remedy: "use RuntimeDefault"},
			Field{Path: at + "seLinuxOptions", Decision: Ignored, How: "the guest has no SELinux; the pod VM is the boundary"},
			Field{Path: at + "windowsOptions", Decision: Refused, How: linux, Remedy: "remove it"},
		)
	}
	return append(fields,
		Field{Path: "securityContext.supplementalGroups[]", Decision: Pinned, How: "`user.groups`"},
		Field{Path: "securityContext.supplementalGroupsPolicy", Decision: Derived, How: "Merge adds the groups that the image's /etc/group gives the user"},
		Field{Path: "securityContext.fsGroup", Decision: Pinned, How: "`user.groups`, and `group` of volumes"},
		Field{Path: "securityContext.fsGroupChangePolicy", Decision: Ignored, How: "volumes are given to the group when they are made"},
		Field{Path: "securityContext.seLinuxChangePolicy", Decision: Ignored, How: "the guest has no SELinux"},
		Field{Path: "securityContext.sysctls[].name", Decision: Pinned, How: "`pod.sysctls`; only those of the pod's own namespaces"},
		Field{Path: "securityContext.sysctls[].value", Decision: Pinned, How: "`pod.sysctls`"},
		Field{Path: "containers[].securityContext.capabilities.add[]", Decision: Pinned, How: "`capabilities`: containerd's default, with these"},
		Field{Path: "containers[].securityContext.capabilities.drop[]", Decision: Pinned, How: "`capabilities`: containerd's default, without these"},
		Field{Path: "containers[].securityContext.privileged", Decision: Refused, How: "a privileged container has the devices of its machine", Only: []string{"false"}, Remedy: "list the capabilities that are needed"},
		Field{Path: "containers[].securityContext.readOnlyRootFilesystem", Decision: Pinned, How: "`readOnlyRoot`"},
		Field{Path: "containers[].securityContext.allowPrivilegeEscalation", Decision: Pinned, How: "`noNewPrivileges` is true only where this is false"},
		Field{Path: "containers[].securityContext.procMount", Decision: Refused, How: "/proc is masked", Only: []string{"Default"}, Remedy: "remove it"},
	)
}

func volumeFields() []Field {
	fields := []Field{
		{Path: "volumes[].name", Decision: Pinned, How: "a volume's name, where a container has it; others are left out"},
		{Path: "volumes[].emptyDir.medium", Decision: Pinned, How: "`ephemeral`: `medium` disk, or memory", Only: []string{"", "Memory"}, Remedy: "use the default, or Memory"},
		{Path: "volumes[].emptyDir.sizeLimit", Decision: Pinned, How: "`size`"},
		{Path: "volumes[].persistentVolumeClaim.claimName", Decision: Derived, How: "a block volume with the key that the annotation " + AnnotationMount + "VOLUME names; other claims are refused"},
		{Path: "volumes[].persistentVolumeClaim.readOnly", Decision: Derived, How: "mounts and devices of it are read-only"},
	}
	for _, source := range []string{"volumes[].", "volumes[].projected.sources[]."} {
		secret := "secretName"
		if strings.Contains(source, "sources") {
			secret = "name"
		}
		for _, kind := range []struct{ name, key string }{{"configMap", "name"}, {"secret", secret}} {
			at := source + kind.name + "."
			fields = append(fields,
				Field{Path: at + kind.key, Decision: Pinned, How: "`files`: contents by digest; of a Secret `sealed` where they are sealed, else with a warning"},
				Field{Path: at + "optional", Decision: Derived, How: "whether it may be absent because it is absent from the input"},
				Field{Path: at + "items[].key", Decision: Derived, How: "which keys become files"},
				Field{Path: at + "items[].path", Decision: Pinned, How: "the file's name"},
				Field{Path: at + "items[].mode", Decision: Pinned, How: "`modes`"},
			)
		}
		at := source + "downwardAPI."
		fields = append(fields,
			Field{Path: at + "items[].path", Decision: Pinned, How: "the file's name"},
			Field{Path: at + "items[].mode", Decision: Pinned, How: "`modes`, or of the host's files `host.mode`"},
			Field{Path: at + "items[].fieldRef.apiVersion", Decision: Derived, How: "there is one", Only: []string{"", "v1"}, Remedy: "remove it"},
			Field{Path: at + "items[].fieldRef.fieldPath", Decision: Slot, How: "a file among `host`: controllers add labels and annotations"},
			Field{Path: at + "items[].resourceFieldRef.containerName", Decision: Derived, How: "whose resources are meant"},
			Field{Path: at + "items[].resourceFieldRef.resource", Decision: Pinned, How: "the digest of the number that the kubelet computes"},
			Field{Path: at + "items[].resourceFieldRef.divisor", Decision: Derived, How: "part of that number"},
		)
	}
	for _, kind := range []string{"configMap", "secret", "downwardAPI", "projected"} {
		fields = append(fields, Field{Path: "volumes[]." + kind + ".defaultMode", Decision: Pinned, How: "`mode`, 0644 without it; within 0775"})
	}
	at := "volumes[].projected.sources[]."
	fields = append(fields,
		Field{Path: at + "serviceAccountToken.path", Decision: Slot, How: "a file among `host`"},
		Field{Path: at + "serviceAccountToken.audience", Decision: Ignored, How: "the token is the API server's word"},
		Field{Path: at + "serviceAccountToken.expirationSeconds", Decision: Ignored, How: "the token is the API server's word"},
		Field{Path: at + "clusterTrustBundle.path", Decision: Slot, How: "a file among `host`"},
		Field{Path: at + "clusterTrustBundle.name", Decision: Ignored, How: "the contents are the API server's word"},
		Field{Path: at + "clusterTrustBundle.signerName", Decision: Ignored, How: "the contents are the API server's word"},
		Field{Path: at + "clusterTrustBundle.labelSelector", Decision: Ignored, How: "the contents are the API server's word"},
		Field{Path: at + "clusterTrustBundle.optional", Decision: Ignored, How: "the file must come"},
		Field{Path: at + "podCertificate", Decision: Refused, How: "its private key is the kubelet's", Remedy: "use a certificate of the trustee"},
		Field{Path: "volumes[].hostPath", Decision: Refused, How: "the guest has no files of the node", Remedy: usePVC},
		Field{Path: "volumes[].csi", Decision: Refused, How: node, Remedy: usePVC},
		Field{Path: "volumes[].ephemeral", Decision: Refused, How: node, Remedy: "use an emptyDir: it is encrypted with a key that only the guest has"},
		Field{Path: "volumes[].image", Decision: Refused, How: "the guest mounts no image as a volume", Remedy: "copy what is needed with an init container into an emptyDir"},
	)
	for _, kind := range []string{"gcePersistentDisk", "awsElasticBlockStore", "gitRepo", "nfs", "iscsi", "glusterfs", "rbd", "flexVolume", "cinder",
		"cephfs", "flocker", "fc", "azureFile", "vsphereVolume", "quobyte", "azureDisk", "photonPersistentDisk", "portworxVolume", "scaleIO", "storageos"} {
		fields = append(fields, Field{Path: "volumes[]." + kind, Decision: Refused, How: node, Remedy: usePVC})
	}
	return fields
}
