// SPDX-License-Identifier: GPL-2.0-only
/*
 * Timers whose frequency the command line tells.
 *
 * The kernel takes the frequency of the local APIC timer from a hypervisor that it knows (kvmclock, VMware, Hyper-V,
 * ACRN) or from CPUID leaf 0x15. QEMU's TCG offers none of them, so each boot would spend 100 ms comparing that
 * timer with the TSC, and 10 ms waiting for a PIT that the machine does not have.
 */
#include <linux/init.h>
#include <linux/kernel.h>

#include <asm/apic.h>
#include <asm/x86_init.h>

static unsigned int told_khz __ro_after_init;

static unsigned long told_cpu_khz(void)
{
	return told_khz;
}

/*
 * tsc.c has a handler for this parameter as well. It takes the TSC's frequency from it and still measures the
 * processor's, to throw the result away when there is no PIT.
 */
static int __init read_tsc_khz(char *text)
{
	unsigned int khz;
	int error = kstrtouint(text, 0, &khz);

	if (error || !khz)
		return error;
	told_khz = khz;
	x86_platform.calibrate_cpu = told_cpu_khz;
	return 0;
}
early_param("tsc_early_khz", read_tsc_khz);

/* The timer's input clock, before its divider. */
static int __init read_apic_timer_khz(char *text)
{
	unsigned int khz;
	int error = kstrtouint(text, 0, &khz);

	if (error)
		return error;
	if (khz > UINT_MAX / (1000 / HZ))
		return -ERANGE;
	lapic_timer_period = khz * (1000 / HZ);
	return 0;
}
early_param("strato.apic_timer_khz", read_apic_timer_khz);
