//! CPUID leaves 0x40000000 to 0x40000006.

/// One leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// EAX that asks for it.
    pub function: u32,
    /// EAX, EBX, ECX and EDX that it answers.
    pub registers: [u32; 4],
}

/// "Microsoft Hv": the name that drivers look for.
const SIGNATURE: [u32; 3] = [0x7263_694d, 0x666f_736f, 0x7648_2074];
/// "Hv#1": the interface.
const INTERFACE: u32 = 0x3123_7648;
/// Never notify the hypervisor about spinlocks.
const NO_SPINLOCK_NOTICE: u32 = u32::MAX;

/// Bits of leaf 0x40000003, EAX: registers that a guest may use.
mod may_use {
    pub(super) const SYNIC: u32 = 1 << 2;
    pub(super) const HYPERCALL: u32 = 1 << 5;
    pub(super) const VP_INDEX: u32 = 1 << 6;
    pub(super) const REFERENCE_TSC: u32 = 1 << 9;
    pub(super) const FREQUENCIES: u32 = 1 << 11;
    pub(super) const TSC_INVARIANT: u32 = 1 << 15;
}

/// Bits of leaf 0x40000003, EBX: calls that a guest may make.
mod may_call {
    pub(super) const POST_MESSAGES: u32 = 1 << 4;
    pub(super) const SIGNAL_EVENTS: u32 = 1 << 5;
}

/// Bits of leaf 0x40000003, EDX: what else there is.
mod also {
    pub(super) const FREQUENCIES: u32 = 1 << 8;
    pub(super) const CRASH_REGISTERS: u32 = 1 << 10;
}

/// Bits of leaf 0x40000004, EAX: hints.
mod hint {
    /// Timers may be late.
    pub(super) const RELAXED_TIMING: u32 = 1 << 5;
    /// Interrupts are not ended by themselves: a user-space interrupt controller cannot do that.
    pub(super) const NO_AUTO_EOI: u32 = 1 << 9;
}

/// The leaves for a machine of `processors`. They take the place of KVM's.
pub fn leaves(processors: u32) -> [Leaf; 7] {
    let registers = may_use::SYNIC
        | may_use::HYPERCALL
        | may_use::VP_INDEX
        | may_use::REFERENCE_TSC
        | may_use::FREQUENCIES
        | may_use::TSC_INVARIANT;
    let calls = may_call::POST_MESSAGES | may_call::SIGNAL_EVENTS;
    let also = also::FREQUENCIES | also::CRASH_REGISTERS;
    let hints = hint::RELAXED_TIMING | hint::NO_AUTO_EOI;
    let [name_b, name_c, name_d] = SIGNATURE;
    [
        (0x4000_0000, [0x4000_0006, name_b, name_c, name_d]),
        (0x4000_0001, [INTERFACE, 0, 0, 0]),
        // Version: that of Windows Server 2016, whose interface this is part of.
        (0x4000_0002, [14_393, 10 << 16, 0, 0]),
        (0x4000_0003, [registers, calls, 0, also]),
        (0x4000_0004, [hints, NO_SPINLOCK_NOTICE, 0, 0]),
        (0x4000_0005, [processors, processors, 0, 0]),
        (0x4000_0006, [0; 4]),
    ]
    .map(|(function, registers)| Leaf {
        function,
        registers,
    })
}
