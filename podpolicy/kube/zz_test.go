package kube_test
import ("testing";"os";"github.com/coffer-project/coffer/podpolicy/kube";"github.com/coffer-project/coffer/podpolicy")
func TestZZ(t *testing.T){
 d,_:=os.ReadFile("/tmp/kubework/t.yaml")
 a:=one(t,string(d),kube.Options{})
 var b kube.Generated = *one(t,string(d)+"  subdomain: x\n  setHostnameAsFQDN: true\n  shareProcessNamespace: true\n  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.1]}\n  securityContext: {sysctls: [{name: net/ipv4/ip_forward, value: '1'}], fsGroup: 5}\n",kube.Options{Allow: map[string]podpolicy.Allow{"*":{Logs:true}}})
 f,err:=kube.Check(t.Context(),&b,a.Policy)
 for _,x:=range f { t.Log(x) }
 t.Log(err)
 f,err=kube.Check(t.Context(),a,b.Policy)
 for _,x:=range f { t.Log(x) }
 t.Log(err)
 t.Fatal()
}
