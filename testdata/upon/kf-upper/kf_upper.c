#include <linux/module.h>
#include "kf_base.h"
#include "kf_base_config.h"

static int __init kf_upper_init(void)
{
	pr_info("the answer is %d\n", kf_base_answer() + KF_BASE_CONFIG);
	return 0;
}

static void __exit kf_upper_exit(void)
{
}

module_init(kf_upper_init);
module_exit(kf_upper_exit);
MODULE_DESCRIPTION("calls a function of another module");
MODULE_LICENSE("GPL");
