# A Linux kernel that is loaded ROOM bytes higher than it runs: what comes first in its place, and what moves it down.
#
# Loaders put a bzImage's 32-bit part at 1 MiB and jump there in protected mode with interrupts off, the address of
# the boot parameters in ESI, and zero in EBP, EDI and EBX (32-bit boot protocol).
# The build gives: ROOM, KERNEL_BYTES (a multiple of 4), and puts the kernel between.

	.code32
	.text
	.set	PLACE, 0x100000

	jmp	move
	.org	ROOM + KERNEL_BYTES
move:	movl	%esi, %edx
	movl	$PLACE + ROOM, %esi
	movl	$PLACE, %edi
	movl	$KERNEL_BYTES / 4, %ecx
	cld
	rep movsl
	movl	%edx, %esi
	xorl	%edi, %edi
	movl	$PLACE, %eax
	jmp	*%eax
