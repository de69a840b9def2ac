#!/bin/sh
# The first program of a kernel that modules are tested in. It carries out /plan,
# which calls the functions below, and reports each step on a serial port of its
# own, never on the console, where the kernel and its modules print what they
# like. A file that is closed is drained: a line that was written is out before
# the step that may end this kernel.
#
#	hello RELEASE
#	unit N                       the steps of unit N follow
#	need NAME STATUS TEXT        a module of the kernel's own
#	begin KIND NAME
#	request NAME                 a module or alias that the kernel has asked for since begin
#	text LINE                    what the step's program has printed
#	kernel LINE                  what the kernel has printed since begin
#	end STATUS STATE TAINT-BEFORE TAINT-AFTER TAINT-OF-MODULE
#	stuck NAME                   it cannot be unloaded: the plan ends here
#	bye

# shellcheck shell=dash

export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp

echo /bin/modprobe >/proc/sys/kernel/modprobe # which notes what it is asked for

# most is how many bytes of a step's messages of a kind are reported, and lines
# how many lines.
most=65536
lines=1000
stuck=
port='' tag='' # /plan has them
newline='
'

# state NAME sets state and flags to how the kernel has the module, as
# /proc/modules has it, and how it taints the kernel; "-" where it has it not.
state() {
	local name s
	state=- flags=-
	while read -r name _ _ _ s _; do
		[ "$name" = "$1" ] && state=$s
	done </proc/modules
	[ "$state" = - ] || read -r flags 2>/dev/null <"/sys/module/$1/taint" || flags=-
	: "${flags:=-}"
}

# The taint has to be had in one read, and the shell's own takes a byte at a time.
tainted=/proc/sys/kernel/tainted

say() { echo "$tag $*" >"$port"; }

begin() {
	dmesg -c >/dev/null
	[ ! -e /tmp/requests ] || rm /tmp/requests
	before=$(cat "$tainted")
	say begin "$@"
}

# finish NAME STATUS TEXT reports how a step ended.
finish() {
	state "$1"
	messages=$(cat "$tainted" && exec dmesg -c)
	after=${messages%%"$newline"*}
	messages=${messages#"$after"}
	messages=${messages#"$newline"}
	{
		[ ! -s /tmp/requests ] || head -c "$most" /tmp/requests | sed "s/^/request /;${lines}q"
		[ -z "$3" ] || echo "$3" | head -c "$most" | sed "s/^/text /;${lines}q"
		[ -z "$messages" ] || echo "$messages" | head -c "$most" | sed "s/^/kernel /;${lines}q"
		echo
		echo "$tag end $2 $state $before $after $flags"
	} >"$port"
}

# hello begins a line: firmware may have used the port, too.
hello() {
	echo >"$port"
	say hello "$(uname -r)" "$(cat "$tainted")"
}

unit() {
	if [ -n "$stuck" ]; then
		say stuck "$stuck"
		sleep 1000
	fi
	say unit "$1"
}

# need NAME FILE loads a module of the kernel's own, unless it is there.
need() {
	local status=0 text=
	state "$1"
	if [ "$state" = - ]; then
		text=$(insmod "$2" 2>&1)
		status=$?
	fi
	say need "$1" "$status" "${text##*"$newline"}"
}

# load NAME FILE [PARAMETER...]
load() {
	local name="$1" file="$2"
	shift 2
	begin load "$name"
	text=$(insmod "$file" "$@" 2>&1)
	finish "$name" $? "$text"
}

# script FILE SECONDS NAME... runs the user's test, if one of the modules is
# there.
script() {
	local file="$1" seconds="$2" any="" name
	shift 2
	for name; do
		state "$name"
		[ "$state" = - ] || any=$name
	done
	if [ -z "$any" ]; then
		say skip script
		return
	fi
	begin script "$any"
	mkdir -p /tmp/script
	(cd /tmp/script && MODULES="$*" exec timeout -s KILL "$seconds" sh "$file") >/tmp/output 2>&1 </dev/null
	status=$?
	finish "$any" "$status" "$(tail -c "$most" /tmp/output | tail -n "$lines")"
	rm -rf /tmp/script /tmp/output
}

unload() {
	state "$1"
	if [ "$state" = - ]; then
		say skip unload
		return
	fi
	begin unload "$1"
	text=$(rmmod "$1" 2>&1)
	finish "$1" $? "$text"
	[ "$state" = - ] || stuck=$1
}

# bye waits a moment for what the last module may have left behind.
bye() {
	usleep 200000
	say bye
	sleep 1000
}

# shellcheck disable=SC1091 # kofarm writes it
. /plan
