//! Bits of the control and status registers, by the names of the manual's chapter 3.

/// CSR0, bus mode.
pub mod bus_mode {
    /// SWR: software reset.
    pub const SWR: u32 = 1 << 0;
    /// DSL: longwords skipped between two descriptors that are not chained; bits 6:2.
    pub const DSL: u32 = 0x1f << 2;
    /// BLE: data buffers in big-endian byte order. Refused.
    pub const BLE: u32 = 1 << 7;
    /// TAP: how often a suspended transmit process looks at its descriptor unasked; bits 19:17, 0 is never.
    pub const TAP: u32 = 7 << 17;
    /// DBO: descriptors in big-endian byte order.
    pub const DBO: u32 = 1 << 20;
}

/// CSR5, status, and CSR7, interrupt enable: the same bits, but for the states in CSR5.
pub mod status {
    /// TI: a frame with IC set was transmitted.
    pub const TI: u32 = 1 << 0;
    /// TPS: the transmit process stopped.
    pub const TPS: u32 = 1 << 1;
    /// TU: the next transmit descriptor is the host's; the transmit process is suspended.
    pub const TU: u32 = 1 << 2;
    /// TJT: a transmission took longer than any frame; the transmit process stopped.
    pub const TJT: u32 = 1 << 3;
    /// UNF: transmit underflow. Never set.
    pub const UNF: u32 = 1 << 5;
    /// RI: a frame was received.
    pub const RI: u32 = 1 << 6;
    /// RU: the next receive descriptor is the host's; the receive process is suspended.
    pub const RU: u32 = 1 << 7;
    /// RPS: the receive process stopped.
    pub const RPS: u32 = 1 << 8;
    /// RWT: a received frame was longer than 2048 bytes. Never set.
    pub const RWT: u32 = 1 << 9;
    /// ETI: a frame is in the transmit FIFO. Cleared by TI.
    pub const ETI: u32 = 1 << 10;
    /// GTE: the general-purpose timer ran out.
    pub const GTE: u32 = 1 << 11;
    /// FBE: a bus error; the adapter leaves the bus alone until it is reset. CSR5 bits 25:23 say which.
    pub const FBE: u32 = 1 << 13;
    /// ERI: the first buffer of a frame was filled. Cleared by RI, which always comes with it here.
    pub const ERI: u32 = 1 << 14;
    /// AIS: abnormal interrupt summary.
    pub const AIS: u32 = 1 << 15;
    /// NIS: normal interrupt summary.
    pub const NIS: u32 = 1 << 16;
    /// RS: state of the receive process; bits 19:17.
    pub const RS: u32 = 7 << 17;
    /// RS: waiting for a frame.
    pub const RS_WAITING: u32 = 3 << 17;
    /// RS: suspended, as the descriptor is the host's.
    pub const RS_SUSPENDED: u32 = 4 << 17;
    /// TS: state of the transmit process; bits 22:20.
    pub const TS: u32 = 7 << 20;
    /// TS: running.
    pub const TS_RUNNING: u32 = 1 << 20;
    /// TS: suspended, as the descriptor is the host's.
    pub const TS_SUSPENDED: u32 = 6 << 20;
    /// EB: kind of bus error; bits 25:23.
    pub const EB: u32 = 7 << 23;
    /// EB: master abort. Nobody answered at the address.
    pub const EB_MASTER_ABORT: u32 = 1 << 23;

    /// What NIS summarises.
    pub const NORMAL: u32 = TI | TU | RI | GTE | ERI;
    /// What AIS summarises.
    pub const ABNORMAL: u32 = TPS | TJT | UNF | RU | RPS | RWT | ETI | FBE;
    /// What the port may set.
    pub const PORT: u32 = (NORMAL | ABNORMAL) & !GTE;

    /// The summary bits for what is set in `status` and enabled in `enable` (CSR7). Only enabled bits are summarised.
    pub const fn summary(status: u32, enable: u32) -> u32 {
        let active = status & enable;
        let normal = if active & NORMAL != 0 { NIS } else { 0 };
        let abnormal = if active & ABNORMAL != 0 { AIS } else { 0 };
        normal | abnormal
    }

    /// Whether `status` asserts the interrupt line: a summary bit is set and enabled itself.
    pub const fn interrupts(status: u32, enable: u32) -> bool {
        summary(status, enable) & enable != 0
    }
}

/// CSR6, operation mode.
pub mod mode {
    /// HP: hash and one perfect address, or hash only. Shows the last setup frame.
    pub const HP: u32 = 1 << 0;
    /// SR: start receiving.
    pub const SR: u32 = 1 << 1;
    /// HO: hash only. Shows the last setup frame.
    pub const HO: u32 = 1 << 2;
    /// IF: inverse filtering. Shows the last setup frame.
    pub const IF: u32 = 1 << 4;
    /// PR: promiscuous.
    pub const PR: u32 = 1 << 6;
    /// PM: pass all multicast.
    pub const PM: u32 = 1 << 7;
    /// OM: loopback; bits 11:10.
    pub const OM: u32 = 3 << 10;
    /// OM: internal loopback.
    pub const OM_INTERNAL: u32 = 1 << 10;
    /// OM: external loopback.
    pub const OM_EXTERNAL: u32 = 2 << 10;
    /// ST: start transmitting.
    pub const ST: u32 = 1 << 13;
    /// PS: MII or SYM port, not the serial one.
    pub const PS: u32 = 1 << 18;
    /// TTM: 10 Mb/s.
    pub const TTM: u32 = 1 << 22;
    /// RA: receive all, and mark what the filter would not have taken.
    pub const RA: u32 = 1 << 30;
}

/// CSR9, serial ROM and MII management.
pub mod serial {
    /// SROM chip select.
    pub const CS: u32 = 1 << 0;
    /// SROM clock.
    pub const CLK: u32 = 1 << 1;
    /// Data to the SROM.
    pub const DI: u32 = 1 << 2;
    /// Data from the SROM.
    pub const DO: u32 = 1 << 3;
    /// SR: the serial ROM is selected.
    pub const SR: u32 = 1 << 11;
    /// BR: the boot ROM is selected.
    pub const BR: u32 = 1 << 12;
    /// RD: read.
    pub const RD: u32 = 1 << 14;
    /// MII management clock.
    pub const MDC: u32 = 1 << 16;
    /// MII management data to the PHY.
    pub const MDO: u32 = 1 << 17;
    /// The PHY drives the data line, not the adapter.
    pub const MII_READ: u32 = 1 << 18;
    /// MII management data from the PHY.
    pub const MDI: u32 = 1 << 19;
}

/// CSR11: the timer starts anew when it runs out.
pub const TIMER_CONTINUOUS: u32 = 1 << 16;
/// CSR12: the write sets directions of the pins, not their values.
pub const GENERAL_PURPOSE_CONTROL: u32 = 1 << 8;
/// CSR15, JBD: no limit to the length of a transmission.
pub const JABBER_DISABLE: u32 = 1 << 0;
/// CSR15, JCK: the limit is 2048 bytes.
pub const JABBER_CLOCK: u32 = 1 << 2;
