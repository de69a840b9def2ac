# The module that the tests pack: gcc -c -o hello.ko hello.s (x86-64). The bytes
# of hello.ko are in the goldens, so it is kept beside this.
.section .modinfo,"a"
.asciz "license=GPL"
.asciz "alias=pci:v00008086d00001234sv*sd*bc*sc*i*"
.asciz "alias=dmi*:svnACME Inc:*"
.asciz "alias=hello-alias"
.asciz "depends="
.asciz "name=hello"
.asciz "vermagic=6.1.192-56.host108.x86_64 SMP preempt mod_unload modversions "
.section __versions,"a"
.quad 0x11111111
.asciz "module_layout"
.zero 42
.quad 0x00000033
.asciz "kfree"
.zero 50
.quad 0x44444444
.asciz "other_call"
.zero 45
.section __ksymtab_strings,"aMS",@progbits,1
__kstrtabns_hello_call: .asciz ""
.section __ksymtab_gpl,"a"
__ksymtab_hello_call: .long hello_call - ., 0, 0
.section __kcrctab_gpl,"a"
__crc_hello_call: .long 0x0eadbeef
.text
.globl hello_call
hello_call: ret
call kfree
call other_call
