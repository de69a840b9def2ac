#include <linux/module.h>
#include "kf_base.h"

int kf_base_answer(void)
{
	return 42;
}
EXPORT_SYMBOL_GPL(kf_base_answer);

MODULE_DESCRIPTION("exports a function");
MODULE_LICENSE("GPL");
