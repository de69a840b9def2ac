// SPDX-License-Identifier: GPL-2.0
// Needs kf_base, and a module of the kernel's own that no symbol tells of.
#include <linux/module.h>

int kf_base_answer(void);

static int __init kf_user_init(void)
{
	pr_info("kf_user: kf_base says %d\n", kf_base_answer());
	return 0;
}

static void __exit kf_user_exit(void)
{
}

module_init(kf_user_init);
module_exit(kf_user_exit);
MODULE_SOFTDEP("pre: dummy");
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("uses another module's symbol");
