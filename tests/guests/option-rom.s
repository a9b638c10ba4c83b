# A PCI option ROM that boots from the network with the iPXE that comes after it.
#
# Debian ships no iPXE ROM for the DEC 21140, but an image of iPXE with all drivers in the form of a Linux kernel.
# This is the little that makes a boot ROM of it: the headers by which the firmware lists it as a boot entry vector
# (Plug and Play BIOS specification 1.0A, BIOS boot specification 1.01), and an entry that copies the image out of
# the ROM BAR and starts it by the Linux boot protocol. The firmware copies only ROM_SECTORS of it to its own memory.
#
# The build gives: VENDOR, DEVICE (PCI), IMAGE (offset of the image in the ROM), SETUP_BYTES (its first part with the
# boot sector), KERNEL_BYTES (the rest).

	.code16
	.text
	.set	ROM_SECTORS, 2
	.set	SETUP_SEGMENT, 0x9000		# where boot loaders put a kernel's first part
	.set	STACK, 0xe000			# of the kernel, in that segment; its heap ends below
	.set	MOVES, 0xd000			# descriptors for moves, in the same segment
	.set	CHUNK, 0x8000			# bytes that one move copies

rom:	.word	0xaa55
	.byte	ROM_SECTORS
	jmp	initialise
	.org	0x18
	.word	pcir
	.word	pnp

pcir:	.ascii	"PCIR"
	.word	VENDOR, DEVICE, 0
	.word	pcir_end - pcir
	.byte	0, 0, 0, 2			# revision; class: Ethernet controller
	.word	ROM_SECTORS, 1
	.byte	0, 0x80				# x86 code, the last image
	.word	0, 0
pcir_end:
	.balign	16
pnp:	.ascii	"$PnP"
	.byte	1, (pnp_end - pnp) / 16
	.word	0
	.byte	0, 0				# checksum: firmware in use does not look
	.long	0
	.word	0, product
	.byte	2, 0, 0				# network controller, Ethernet
	.byte	0x14				# boots, by a boot entry vector
	.word	0, 0, boot, 0, 0
	.balign	16
pnp_end:
product:
	.asciz	"iPXE"
address:
	.word	0				# bus, device, function
	.word	0				# its bytes negated: the firmware checks the sum again

# The firmware tells the function's address in AX and leaves this memory writable meanwhile.
initialise:
	movw	%ax, %cs:address
	negb	%al
	negb	%ah
	movw	%ax, %cs:address + 2
	movw	$0x20, %ax			# a boot device is attached
	lret

boot:	cld
	movw	%cs, %ax
	movw	%ax, %ds
	movw	$SETUP_SEGMENT, %ax
	movw	%ax, %ss
	movw	$STACK, %sp
	movb	$0x04, %bl			# command register: decode memory
	call	config
	inl	%dx, %eax
	orw	$2, %ax
	outl	%eax, %dx
	movb	$0x30, %bl			# ROM BAR: enable
	call	config
	inl	%dx, %eax
	orl	$1, %eax
	outl	%eax, %dx
	andl	$~0x7ff, %eax
	leal	IMAGE(%eax), %esi
	movl	$SETUP_SEGMENT << 4, %edi
	movl	$SETUP_BYTES, %ecx
	call	copy
	movl	$0x100000, %edi
	movl	$KERNEL_BYTES, %ecx
	call	copy
	movb	$0x30, %bl
	call	config
	inl	%dx, %eax
	andb	$~1, %al
	outl	%eax, %dx

	movw	$SETUP_SEGMENT, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %fs
	movw	%ax, %gs
	movb	$0xff, 0x210			# type_of_loader: one without a number
	orb	$0x80, 0x211			# loadflags: there is a heap
	movw	$STACK - 0x200, 0x224		# heap_end_ptr
	movl	$(SETUP_SEGMENT << 4) + STACK, 0x228	# cmd_line_ptr
	movb	$0, STACK
	ljmp	$SETUP_SEGMENT + 0x20, $0

# Selects register BL of the function; DX is the data port then.
config:	movzwl	address, %eax
	shll	$8, %eax
	orl	$0x80000000, %eax
	movb	%bl, %al
	movw	$0xcf8, %dx
	outl	%eax, %dx
	movw	$0xcfc, %dx
	ret

# Copies ECX bytes, rounded up to whole chunks, from ESI to EDI, and moves ESI behind them (INT 15h, AH=87h).
copy:	addl	%ecx, %esi
	pushl	%esi
	subl	%ecx, %esi
1:	pushl	%ecx
	pushl	%esi
	pushl	%edi
	movw	%ss, %ax
	movw	%ax, %es
	movw	$MOVES, %bx
	pushw	%di
	movw	%bx, %di
	movw	$24, %cx
	xorw	%ax, %ax
	rep stosw
	popw	%di
	addw	$0x10, %bx
	call	segment				# from
	movl	%edi, %esi
	addw	$8, %bx
	call	segment				# to
	movw	$MOVES, %si
	movw	$CHUNK / 2, %cx
	movb	$0x87, %ah
	int	$0x15
	popl	%edi
	popl	%esi
	popl	%ecx
	addl	$CHUNK, %esi
	addl	$CHUNK, %edi
	subl	$CHUNK, %ecx
	ja	1b
	popl	%esi
	ret

# Writes at ES:BX the descriptor of a writable segment of 64 KiB at ESI.
segment:
	movw	$0xffff, %es:(%bx)
	movl	%esi, %es:2(%bx)
	movb	$0x93, %es:5(%bx)
	pushl	%esi
	shrl	$24, %esi
	shlw	$8, %si
	movw	%si, %es:6(%bx)
	popl	%esi
	ret
	.org	ROM_SECTORS * 512
