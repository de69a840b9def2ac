// SPDX-License-Identifier: GPL-2.0
// Exports what kf_user needs, and takes a parameter.
#include <linux/module.h>

static int answer = 41;
module_param(answer, int, 0444);

int kf_base_answer(void);
int kf_base_answer(void)
{
	return answer + 1;
}
EXPORT_SYMBOL(kf_base_answer);

static int __init kf_base_init(void)
{
	pr_info("kf_base: the answer is %d\n", kf_base_answer());
	return 0;
}

static void __exit kf_base_exit(void)
{
}

module_init(kf_base_init);
module_exit(kf_base_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("exports a symbol");
