# From the 64-bit entry of the boot protocol to ring 3, and the little that stays in ring 0: the rest of the program runs
# in ring 3, at the processor's own speed also where KVM emulates ring 0.
#
# Ring 3 has all ports (by the map of the task state), interrupts off, and the first 4 GiB at their physical addresses. What it may not do, it
# does all the same: RDMSR, WRMSR and HLT fault, and the handler of the fault carries them out.

.set CODE0, 0x08
.set DATA3, 0x18 | 3
.set CODE3, 0x20 | 3
.set TSS, 0x28

.section .text.start, "ax"
.globl start
start:
    # RSI: the zero page of the boot protocol.
    lea rsp, [ring0_stack_end]
    lea rax, [top_table]
    mov cr3, rax
    mov rax, cr4
    or rax, 0x600                       # OSFXSR, OSXMMEXCPT
    mov cr4, rax

    # Gates: vector n starts at stubs + 16 n; DPL 0, interrupts off.
    lea rdi, [idt]
    lea rbx, [stubs]
    mov ecx, 256
gate:
    mov [rdi], bx
    mov word ptr [rdi + 2], CODE0
    mov word ptr [rdi + 4], 0x8e00
    mov rdx, rbx
    shr rdx, 16
    mov [rdi + 6], dx
    shr rdx, 16
    mov [rdi + 8], edx
    add rdi, 16
    add rbx, 16
    dec ecx
    jnz gate
    lidt [idt_register]

    # The task state's address goes into its descriptor.
    lea rax, [tss]
    lea rdi, [gdt + TSS]
    mov [rdi + 2], ax
    shr rax, 16
    mov [rdi + 4], al
    mov [rdi + 7], ah
    lgdt [gdt_register]
    mov ax, TSS
    ltr ax

    # The local APIC is on: spurious vector 255.
    mov eax, 0xfee000f0
    mov dword ptr [rax], 0x1ff

    # To main(zero page, interface of the hypervisor): ring 3's CPUID may not be the monitor's.
    mov rdi, rsi
    mov eax, 0x40000001
    cpuid
    mov rdx, rax
    lea rsi, [main]
to_ring3:
    # To the function at RSI.
    mov ax, DATA3
    mov ds, ax
    mov es, ax
    push DATA3
    lea rax, [ring3_stack_end - 8]      # as if called
    push rax
    push 2                              # interrupts off
    push CODE3
    push rsi
    iretq

# Faults: the vector and the error code on the stack. Interrupts end at once: they only wake a processor that halts.
.balign 16
stubs:
.set vector, 0
.rept 256
.balign 16
.if vector >= 32
    jmp interrupt
.elseif vector == 13
    jmp protection
.elseif vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
    push vector
    jmp fault
.else
    push 0
    push vector
    jmp fault
.endif
.set vector, vector + 1
.endr

interrupt:
    push rax
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0              # end of interrupt
    pop rax
    iretq

protection:
    # Error code, RIP, CS, RFLAGS, RSP, SS.
    push rax
    test byte ptr [rsp + 24], 3
    jz 9f
    mov rax, [rsp + 16]
    cmp byte ptr [rax], 0xf4
    je 3f
    cmp word ptr [rax], 0x300f
    je 1f
    cmp word ptr [rax], 0x320f
    je 2f
9:  pop rax
    push 13
    jmp fault
1:  pop rax
    add rsp, 8
    add qword ptr [rsp], 2
    wrmsr
    iretq
2:  pop rax
    add rsp, 8
    add qword ptr [rsp], 2
    rdmsr
    iretq
3:  pop rax
    add rsp, 8
    add qword ptr [rsp], 1
    # An interrupt that came before is taken behind the HLT.
    sti
    hlt
    cli
    iretq

fault:
    # Vector, error code, RIP; ring 3 says it.
    pop rdi
    pop rsi
    pop rdx
    mov rcx, cr2
    mov rax, rsi
    lea rsp, [ring0_stack_end]
    lea rsi, [fault_report]
    mov r8, rax
    jmp to_ring3

.section .data.tables, "aw"
.balign 4096
top_table:
    .quad second_table + 7
    .fill 511, 8, 0
second_table:
    .quad third_tables + 0x0007
    .quad third_tables + 0x1007
    .quad third_tables + 0x2007
    .quad third_tables + 0x3007
    .fill 508, 8, 0
third_tables:
.set page, 0
.rept 2048
    .quad page + 0x87                   # present, writable, for ring 3, 2 MiB
.set page, page + 0x200000
.endr
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # code of ring 0
    .quad 0x00cf93000000ffff            # data of ring 0
    .quad 0x00cff3000000ffff            # data of ring 3
    .quad 0x00affb000000ffff            # code of ring 3
    .quad 0x0000890000000000 + tss_end - tss - 1, 0 # the task state
gdt_register:
    .word . - gdt - 1
    .quad gdt
idt_register:
    .word 4095
    .quad idt
tss:
    .long 0
    .quad ring0_stack_end
    .fill 90, 1, 0
    .word 104                           # the map of ports: all are allowed
    .fill 8192, 1, 0
    .byte 0xff
tss_end:

.section .bss.boot, "aw", @nobits
.balign 4096
idt:
    .skip 4096
    .skip 4096
ring0_stack_end:
    .skip 65536 * 4
ring3_stack_end:
