// SPDX-License-Identifier: GPL-2.0
// A character device that counts how often it was opened.
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

static atomic_t opened;

static ssize_t counter_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	char text[16];
	int n = scnprintf(text, sizeof(text), "%d\n", (int)(long)file->private_data);

	return simple_read_from_buffer(to, size, at, text, n);
}

static int counter_open(struct inode *inode, struct file *file)
{
	file->private_data = (void *)(long)atomic_inc_return(&opened);
	return 0;
}

static const struct file_operations counter_operations = {
	.owner = THIS_MODULE,
	.open = counter_open,
	.read = counter_read,
};

static struct miscdevice counter = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kf_counter",
	.fops = &counter_operations,
};

module_misc_device(counter);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("a device that counts");
