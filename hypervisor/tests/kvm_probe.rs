#![allow(clippy::unwrap_used)]
use hypervisor::*;
#[test]
fn probe() {
    let kvm = kvm::open().unwrap();
    let vm = kvm::Vm::new(&kvm).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid(&cpuid::cpuid(&kvm, 0, 1).unwrap()).unwrap();
    let msrs = state::readable_msrs(&kvm, &vcpu).unwrap();
    println!("{} msrs {:x?}", msrs.len(), msrs);
    let s = state::VcpuState::read(&vcpu, &msrs).unwrap();
    s.write(&vcpu).unwrap();
    let j = serde_json::to_string(&s).unwrap();
    println!("json {}", j.len());
    let c = vm.chips().unwrap();
    vm.set_chips(&c).unwrap();
    let s: state::VcpuState = serde_json::from_str(&j).unwrap();
    s.write(&vcpu).unwrap();
}
