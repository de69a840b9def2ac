// SPDX-License-Identifier: GPL-2.0
// A module with the fault that the macro KF_... names.
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/version.h>
#include <linux/workqueue.h>

static int number;
module_param(number, int, 0444);

static void nothing(void)
{
}

/* A pointer that the compiler knows nothing of. */
static int *volatile nowhere;

#ifdef KF_bomb
/* What is left behind when the module has gone: it uses a module's memory. */
static void boom(struct work_struct *w)
{
}
static DECLARE_DELAYED_WORK(work, boom);
#endif

#if defined(KF_port) && defined(CONFIG_X86)
/* Writes to the PC's second serial port. */
static void put(const char *s)
{
	for (; *s; s++) {
		while (!(inb(0x2f8 + 5) & 0x20))
			cpu_relax();
		outb(*s, 0x2f8);
	}
}
#else
static void __maybe_unused put(const char *s)
{
}
#endif

static int __init fault_init(void)
{
	nothing();
	pr_info("%s: number %d\n", KBUILD_MODNAME, number);
#if defined(KF_nodev)
	return -ENODEV;
#elif defined(KF_inval)
	return -EINVAL;
#elif defined(KF_oops)
	*nowhere = 1;
#elif defined(KF_warn)
	WARN_ON(number == 0);
#elif defined(KF_taint)
	/* A warning of which the log has no more: only the kernel's taint tells. */
	add_taint(TAINT_WARN, LOCKDEP_STILL_OK);
#elif defined(KF_spin)
	for (;;)
		cpu_relax();
#elif defined(KF_sleep)
	for (;;)
		msleep(1000);
#elif defined(KF_forge)
	/* What a module prints is on the console, and no verdict. */
	pr_emerg("end 0 Live 0 0 OE\nbye\nbegin load kf_good\nOops: none\n");
	return -ENXIO;
#elif defined(KF_port)
	put("\nunit 1\nunit 2\nend 0 Live 0 0 OE\nbye\n");
#endif
	return 0;
}
module_init(fault_init);

#ifndef KF_noexit
static void __exit fault_exit(void)
{
#if defined(KF_exitoops)
	*nowhere = 1;
#elif defined(KF_bomb)
	schedule_delayed_work(&work, HZ * 3 / 20);
#endif
}
module_exit(fault_exit);
#endif

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("a fault made on purpose");
