#!/bin/bash
# The build that runs inside the container: what `dkms build` does, at DKMS's
# own paths, with the semantics of DKMS 3.4.
#
#   build MODULE VERSION KERNEL ARCH JOBS INSTALL [MAKE-ARGUMENT...]
#
# INSTALL, unless it is empty, is a command that installs user-space files below
# $DESTDIR. /usr/lib/kofarm/dkms/NAME/VERSION/KERNEL/ARCH has the modules that this
# one is built upon. Standard error is the log. Standard output is one tar: result.json,
# and for a built module module/*.ko, Module.symvers where the build made one,
# tree/ with what POST_BUILD has left beside them, and files/ with what INSTALL has
# installed.
#
# Where DKMS 3.0 differs from what is done here:
#   BUILD_EXCLUSIVE_KERNEL_MIN, _MAX   3.0 ignores them
#   BUILD_EXCLUSIVE_CONFIG             3.0 reads .config, 3.4 include/config/auto.conf
#   CC, KERNEL_CC                      3.0 leaves them unset
#   a failing PRE_BUILD or POST_BUILD  3.0 goes on
#   BUILD_DEPENDS                      3.0 builds without what it names
#   Module.symvers                     3.0 does not keep it
#   BUILD_EXCLUSIVE_*[1] and above     3.0 and 3.2 ignore them
#   a carriage return after a value    3.0 keeps it; what kofarm packs has none
# Where any DKMS differs:
#   a .ko that strip refuses           DKMS goes on
#   the compiler                       where a kernel's own Makefiles do not choose the one that its configuration
#                                      names (Debian's do, in .kernelvariables), DKMS takes whatever gcc is
#   another architecture               DKMS builds for the machine that it runs on
exec 3>&1 1>&2

module=$1 module_version=$2 kernelver=$3 arch=$4 jobs=$5 install=$6
shift 6
make_args=("$@")

# These names, and the first four above, are what a dkms.conf may use.
dkms_tree=/var/lib/dkms source_tree=/usr/src install_tree=/lib/modules
kernel_source_dir=$install_tree/$kernelver/build
kernel_config=$kernel_source_dir/include/config/auto.conf
[[ -e $kernel_config ]] || kernel_config=$kernel_source_dir/.config

source_dir=$source_tree/$module-$module_version
build_dir=$dkms_tree/$module/$module_version/build
base_dir=$dkms_tree/$module/$module_version/$kernelver/$arch
work=/run/kofarm
directives="PACKAGE_NAME PACKAGE_VERSION BUILT_MODULE_NAME BUILT_MODULE_LOCATION DEST_MODULE_NAME
	DEST_MODULE_LOCATION STRIP MAKE MAKE_MATCH PATCH PATCH_MATCH PRE_BUILD POST_BUILD OBSOLETE_BY BUILD_DEPENDS
	BUILD_EXCLUSIVE_KERNEL BUILD_EXCLUSIVE_KERNEL_MIN BUILD_EXCLUSIVE_KERNEL_MAX BUILD_EXCLUSIVE_ARCH
	BUILD_EXCLUSIVE_CONFIG"

# json STRING appends it to report, as a JSON string.
json() {
	local s=$1 out='"' c i LC_ALL=C
	for ((i = 0; i < ${#s}; i++)); do
		c=${s:i:1}
		case $c in
		'"' | \\) out+=\\$c ;;
		[[:cntrl:]]) printf -v c '\\u%04x' "'$c"; out+=$c ;;
		*) out+=$c ;;
		esac
	done
	report+=$out'"'
}

# disk_full prints true where less than 64 KiB or no inode is left on one of the
# build's file systems, else false.
disk_full() {
	local size blocks inodes free full=false
	while read -r size blocks inodes free; do
		((size * blocks >= 65536 && (free || !inodes))) || full=true
	done < <(stat -f -c '%S %a %c %d' "$dkms_tree" /tmp /var/tmp /run /root)
	printf '%s' "$full"
}

# finish OUTCOME PHASE DKMS-EXIT MESSAGE writes the output and ends the build.
# Files named in the array outputs, below $base_dir, go along.
outputs=() trees=()
finish() {
	local i full=false report
	[[ $1 != failed ]] || full=$(disk_full)
	report='{"version":1,"outcome":' && json "$1"
	report+=',"phase":' && json "$2"
	report+=',"dkmsExit":'$3',"message":' && json "$4"
	report+=',"compiler":' && json "${compiler:-}"
	report+=',"unsteady":' && json "${unsteady:-}"
	report+=',"diskFull":'$full',"modules":['
	for i in "${kept[@]}"; do
		((i == kept[0])) || report+=,
		report+='{"name":' && json "${dest_name[i]}"
		report+=',"location":' && json "${DEST_MODULE_LOCATION[i]}"
		report+='}'
	done
	echo "$report]}" > "$work/result.json"
	[[ $1 = built ]] || outputs=() trees=()
	[[ $1 = built ]] || echo "kofarm: $1: $2: $4"
	tar --format=ustar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --hard-dereference --no-recursion -cf - \
		-C "$work" result.json ${outputs[0]+-C "$base_dir"} "${outputs[@]}" ${trees[0]+--recursion -C "$work"} "${trees[@]}" >&3
	exit
}
fail() { finish failed "$@"; }

# padded VERSION prints it with its numbers filled up to three digits, so that
# it compares as a string, the way DKMS compares kernel versions.
padded() {
	local s=$1 out='' n
	while [[ $s =~ ^([^0-9]*)([0-9]+)(.*)$ ]]; do
		n=${BASH_REMATCH[2]} out+=${BASH_REMATCH[1]} s=${BASH_REMATCH[3]}
		while ((${#n} < 3)); do n=0$n; done
		out+=$n
	done
	printf '%s' "$out$s"
}

# evaluate_conf evaluates dkms.conf in a shell of its own, which hands the
# directives back as assignments. As in DKMS a value is split into words and
# joined by single spaces on the way, and expanded a second time when it arrives.
evaluate_conf() {
	local conf=$source_dir/dkms.conf
	(
		exec 3>&- 4> "$work/conf" 0< /dev/null
		# shellcheck disable=SC2086 # a list of names
		unset $directives
		# shellcheck source=/dev/null
		. "$conf" > /dev/null
		CR=$'\r'
		for d in $directives; do
			declare -n v=$d
			for i in "${!v[@]}"; do
				# shellcheck disable=SC2086 # split into words, as DKMS does
				echo "${d}[$i]=\""${v[$i]%$CR}'"' >&4
			done
			declare +n v
		done
		: > "$work/conf.complete"
	)
	status=$?
	[[ -e $work/conf.complete ]] || return
	# shellcheck disable=SC2086 # a list of names
	unset $directives
	# shellcheck source=/dev/null
	. "$work/conf" 3>&-
}

# read_conf gives the directives their values, and says in unsteady if on a
# machine without the kernel's headers, where DKMS reads it again to install what
# was built, dkms.conf would name other modules.
read_conf() {
	local status
	[[ -r $source_dir/dkms.conf ]] || fail conf 4 "there is no dkms.conf in $source_dir"
	(list_elsewhere) > "$work/elsewhere/list"
	evaluate_conf
	[[ -e $work/conf.complete ]] ||
		fail conf 8 "dkms.conf ended its shell before its end was reached (status $status)"
	[[ $(< "$work/elsewhere/list") = "$(module_list)" ]] || unsteady="dkms.conf names other modules where the kernel's headers are not installed"
}

# list_elsewhere prints the module_list of a machine without headers.
list_elsewhere() {
	local work=$work/elsewhere kernel_source_dir=$install_tree/none/build kernel_config=$install_tree/none/build/.config
	evaluate_conf 2> /dev/null
	module_list
}

# module_list prints what says which modules there are.
module_list() {
	declare -p BUILT_MODULE_NAME DEST_MODULE_NAME DEST_MODULE_LOCATION "${!BUILD_EXCLUSIVE_@}" 2> /dev/null
	:
}

# check_conf names the modules, and refuses what DKMS refuses.
check_conf() {
	local i n=0 built=' ' dest=' '
	[[ ${PACKAGE_NAME:-} ]] || fail conf 8 "dkms.conf sets no PACKAGE_NAME"
	[[ ${PACKAGE_VERSION:-} ]] || fail conf 8 "dkms.conf sets no PACKAGE_VERSION"
	[[ $PACKAGE_NAME = "$module" ]] || fail conf 8 "dkms.conf says PACKAGE_NAME=\"$PACKAGE_NAME\", the farm file $module"
	[[ $PACKAGE_VERSION = "$module_version" ]] ||
		fail conf 8 "dkms.conf says PACKAGE_VERSION=\"$PACKAGE_VERSION\", the farm file $module_version"
	for i in "${!BUILT_MODULE_NAME[@]}" "${!BUILT_MODULE_LOCATION[@]}" "${!DEST_MODULE_NAME[@]}" "${!DEST_MODULE_LOCATION[@]}"; do
		((i < n)) || n=$((i + 1))
	done
	((n <= 4096)) || fail conf 8 "dkms.conf names more than 4096 modules"
	num_modules=$n
	for ((i = 0; i < n; i++)); do
		built_name[i]=${BUILT_MODULE_NAME[i]:-}
		[[ ${built_name[i]} ]] || { ((n == 1)) && built_name[i]=$PACKAGE_NAME; }
		[[ ${built_name[i]} ]] || fail conf 8 "dkms.conf gives no BUILT_MODULE_NAME[$i]"
		dest_name[i]=${DEST_MODULE_NAME[i]:-${built_name[i]}}
		built_location[i]=${BUILT_MODULE_LOCATION[i]:-}
		[[ ! ${built_location[i]} || ${built_location[i]} = */ ]] || built_location[i]+=/
		case ${STRIP[i]:-${STRIP[0]:-yes}} in [nN]*) strip[i]=no ;; *) strip[i]=yes ;; esac
		[[ ${built_name[i]} != *.o && ${built_name[i]} != *.ko ]] || fail conf 8 "BUILT_MODULE_NAME[$i] ends in .o or .ko"
		[[ ${dest_name[i]} != *.o && ${dest_name[i]} != *.ko ]] || fail conf 8 "DEST_MODULE_NAME[$i] ends in .o or .ko"
		[[ ${dest_name[i]} =~ ^[A-Za-z0-9_][A-Za-z0-9_.+-]*$ ]] ||
			fail conf 8 "DEST_MODULE_NAME[$i]=\"${dest_name[i]}\" is no file name"
		case ${DEST_MODULE_LOCATION[i]:-} in
		/kernel* | /updates* | /extra*) ;;
		'') fail conf 8 "dkms.conf gives no DEST_MODULE_LOCATION[$i]" ;;
		*) fail conf 8 "DEST_MODULE_LOCATION[$i] does not begin with /kernel, /updates or /extra" ;;
		esac
		[[ $built != *" ${built_location[i]}${built_name[i]} "* ]] ||
			fail conf 8 "two modules have the BUILT_MODULE_NAME ${built_location[i]}${built_name[i]}"
		[[ $dest != *" ${dest_name[i]} "* ]] || fail conf 8 "two modules have the DEST_MODULE_NAME ${dest_name[i]}"
		built+="${built_location[i]}${built_name[i]} " dest+="${dest_name[i]} "
	done
	((n)) || echo "kofarm: dkms.conf names no module"
}

# exclusion INDEX sets why to the directive that keeps a module out, "" if none
# does. As in DKMS 3.4 a directive's index 0, which is its plain name, acts for
# every module, and any other for its own.
exclusion() {
	local i k
	why=
	for i in 0 "$1"; do
		[[ ${BUILD_EXCLUSIVE_KERNEL[i]:-} && ! $kernelver =~ ${BUILD_EXCLUSIVE_KERNEL[i]} ]] &&
			why="BUILD_EXCLUSIVE_KERNEL=\"${BUILD_EXCLUSIVE_KERNEL[i]}\" does not match $kernelver"
		[[ ${BUILD_EXCLUSIVE_KERNEL_MIN[i]:-} && $(padded "$kernelver") < $(padded "${BUILD_EXCLUSIVE_KERNEL_MIN[i]}") ]] &&
			why="$kernelver is older than BUILD_EXCLUSIVE_KERNEL_MIN=\"${BUILD_EXCLUSIVE_KERNEL_MIN[i]}\""
		[[ ${BUILD_EXCLUSIVE_KERNEL_MAX[i]:-} && $(padded "$kernelver") > $(padded "${BUILD_EXCLUSIVE_KERNEL_MAX[i]}") ]] &&
			why="$kernelver is newer than BUILD_EXCLUSIVE_KERNEL_MAX=\"${BUILD_EXCLUSIVE_KERNEL_MAX[i]}\""
		[[ ${BUILD_EXCLUSIVE_ARCH[i]:-} && ! $arch =~ ${BUILD_EXCLUSIVE_ARCH[i]} ]] &&
			why="BUILD_EXCLUSIVE_ARCH=\"${BUILD_EXCLUSIVE_ARCH[i]}\" does not match $arch"
		[[ -e $kernel_config ]] || continue
		for k in ${BUILD_EXCLUSIVE_CONFIG[i]:-}; do
			case $k in
			!*) grep -q "^${k#!}=[ym]" "$kernel_config" && why="BUILD_EXCLUSIVE_CONFIG: the kernel has ${k#!}" ;;
			*) grep -q "^$k=[ym]" "$kernel_config" || why="BUILD_EXCLUSIVE_CONFIG: the kernel lacks $k" ;;
			esac
		done
	done
}

# check_exclusions fills kept with the indices of the modules that are not
# excluded, and ends the build where there are none.
check_exclusions() {
	local i why
	[[ ${BUILD_EXCLUSIVE_KERNEL_MAX[*]:-} ]] || BUILD_EXCLUSIVE_KERNEL_MAX=${OBSOLETE_BY:-}
	for ((i = 0; i < num_modules; i++)); do
		exclusion "$i"
		if [[ $why ]]; then echo "kofarm: ${dest_name[i]} is excluded: $why"; else kept+=("$i"); fi
	done
	((${#kept[@]} || !num_modules)) || finish excluded exclusion 77 "$why"
	((${#kept[@]} == num_modules)) || unsteady="dkms.conf excludes some of its modules by BUILD_EXCLUSIVE_*[1] and above, which dkms before 3.4 ignores"
}

# check_source refuses what DKMS takes for a binary-only tarball's stub.
check_source() {
	local entries=("$source_dir"/*)
	((${#entries[@]} >= 2)) || fail copy 8 "$source_dir holds nothing but dkms.conf"
}

# place_built puts the modules that were built before where DKMS has them.
place_built() {
	local dir name version
	for dir in /usr/lib/kofarm/dkms/*/*; do
		[[ -d $dir ]] || continue
		version=${dir##*/} name=${dir%/*} name=${name##*/}
		{ mkdir -p "$dkms_tree/$name/$version" && cp -r "$dir/$kernelver" "$dkms_tree/$name/$version/" &&
			ln -s "$source_tree/$name-$version" "$dkms_tree/$name/$version/source" &&
			ln -s "$version/$kernelver/$arch" "$dkms_tree/$name/kernel-$kernelver-$arch"; } ||
			fail depends 13 "$name/$version cannot be copied to $dkms_tree"
	done
}

# check_depends wants the modules there that dkms.conf says are to be installed.
check_depends() {
	local d
	for d in "${BUILD_DEPENDS[@]}"; do
		[[ ! $d || -e $dkms_tree/$d/kernel-$kernelver-$arch ]] ||
			fail depends 13 "BUILD_DEPENDS wants $d installed: have the farm file build it, too, and say build-depends: [$d]"
	done
}

# choose_machine sets ARCH and CROSS_COMPILE, as the kernel's Makefiles take them
# from the environment, where the kernel is not of this machine's architecture.
choose_machine() {
	local machine=$HOSTTYPE fixdep
	[[ $arch != "$machine" ]] || return 0
	case $arch in
	aarch64) export ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- ;;
	*) return 0 ;;
	esac
	fixdep=$kernel_source_dir/scripts/basic/fixdep
	[[ -e $fixdep ]] || return 0
	"$fixdep" > /dev/null 2>&1 # without arguments it ends with status 1
	(($? == 1)) || fail headers 21 "the headers' own programs, such as scripts/basic/fixdep, do not run on $machine: \
to build for $arch here, give headers whose scripts/ were built on $machine"
}

# named_compiler sets name to the compiler that CONFIG_CC_VERSION_TEXT, which is
# $1, names. For another architecture it is this machine's cross compiler, whatever
# the kernel's was called; with the number where only that is there.
named_compiler() {
	name=${1%% *}
	if [[ ${CROSS_COMPILE:-} && $name = *gcc* ]]; then
		name=${CROSS_COMPILE}gcc${name##*gcc}
		command -v "$name" > /dev/null || [[ $name != *gcc || ! $1 =~ $major ]] || name+=-${BASH_REMATCH[1]}
	fi
}

# choose_compiler sets CC as the kernel's configuration names it, and refuses a
# compiler of another major version than the kernel was built with.
choose_compiler() {
	local settings line text='' lld='' text_major name default major='[)n] ([0-9]+)\.' # gcc-12 (Debian 12.2.0-14) 12.2.0; clang version 19.1.7
	unset CC CXX CFLAGS CXXFLAGS LDFLAGS
	[[ -e $kernel_source_dir/include ]] || fail headers 21 "no kernel headers at $kernel_source_dir"
	choose_machine
	[[ -e $kernel_config ]] || return 0
	settings=$(grep -E '^CONFIG_(CC_VERSION_TEXT|LD_IS_LLD|CC_IS_CLANG)=' "$kernel_config")
	while read -r line; do
		case $line in
		CONFIG_CC_VERSION_TEXT=*) text=${line#*=} text=${text//\"/} ;;
		CONFIG_LD_IS_LLD=y*) lld=yes ;;
		CONFIG_CC_IS_CLANG=y*) llvm=yes ;;
		esac
	done <<< "$settings"
	[[ $text ]] || return 0
	named_compiler "$text"
	if command -v "$name" > /dev/null; then
		export CC=$name KERNEL_CC=$name
	fi
	if [[ $lld ]] && command -v ld.lld > /dev/null; then
		export LD=ld.lld KERNEL_LD=ld.lld
	fi
	default=${CROSS_COMPILE:-}gcc
	if [[ ! -e $kernel_source_dir/.kernelvariables && ${CC:-$default} != "$default" && ${CC:-} != clang ]]; then
		export MAKEFLAGS="-- CC=$CC"
	fi
	read -r compiler < <("${CC:-$default}" --version 2> /dev/null)
	[[ $compiler ]] || fail toolchain 10 "the kernel was built by \"$text\"; the image has no such compiler"
	[[ $compiler = "$text" ]] || echo "kofarm: the kernel was built by \"$text\", the module is by \"$compiler\""
	[[ $text =~ $major ]] && text_major=${BASH_REMATCH[1]} || return 0
	[[ $compiler =~ $major && ${BASH_REMATCH[1]} != "$text_major" ]] &&
		fail toolchain 10 "the kernel was built by \"$text\", the image has \"$compiler\""
	return 0
}

# make_command sets command to the MAKE that fits this kernel. Of an array with gaps DKMS
# takes as many indices as there are entries, so the last are not looked at; it is
# so with PATCH, too.
make_command() {
	local i word
	command=
	[[ ${MAKE_MATCH[0]:-} ]] || command=${MAKE[0]:-}
	for ((i = 0; i < ${#MAKE[@]}; i++)); do
		[[ ${MAKE[i]} && ${MAKE_MATCH[i]:-} && $kernelver =~ ${MAKE_MATCH[i]} ]] && command=${MAKE[i]}
	done
	[[ $command ]] || command="make -C $kernel_source_dir M=$build_dir"
	[[ ! $llvm ]] || command+=" LLVM=1"
	for i in "${make_args[@]}"; do
		printf -v word %q "$i"
		command+=" $word"
	done
	command=${command/#make/make -j$jobs KERNELRELEASE=$kernelver}
}

apply_patches() {
	local i p
	for ((i = 0; i < ${#PATCH[@]}; i++)); do
		p=${PATCH[i]:-}
		[[ $p && (! ${PATCH_MATCH[i]:-} || $kernelver =~ ${PATCH_MATCH[i]}) ]] || continue
		[[ patches/$p != *"/../"* ]] || fail patch 5 "patch $p has .. in its path"
		[[ -e $build_dir/patches/$p ]] || fail patch 5 "patch $p is not in $build_dir/patches"
		echo "# phase: patch: $p"
		patch -p1 < "./patches/$p" 3>&- || fail patch 6 "patch $p does not apply"
	done
}

# script PHASE COMMAND runs PRE_BUILD or POST_BUILD in the build directory.
script() {
	local status
	[[ $2 ]] || return 0
	if [[ ! -x $build_dir/${2%% *} ]]; then
		echo "kofarm: the $1 script ${2%% *} is not executable: not run"
		return 0
	fi
	echo "# phase: $1"
	(eval "cd '$build_dir' && $build_dir/$2") 3>&- 0< /dev/null
	status=$?
	((status == 0)) || fail "$1" "$status" "the $1 script ended with status $status"
}

collect() {
	local i ko
	for i in "${kept[@]}"; do
		ko=$build_dir/${built_location[i]}${built_name[i]}.ko
		[[ -e $ko ]] || fail modules 7 "the build made no ${built_location[i]}${built_name[i]}.ko"
		[[ -f $ko && ! -L $ko ]] || fail modules 7 "${built_location[i]}${built_name[i]}.ko is no regular file"
	done
	mkdir -p "$base_dir/module" "$base_dir/log"
	[[ ! -f Module.symvers || -L Module.symvers ]] || cp Module.symvers "$base_dir/module/Module.symvers"
	for i in "${kept[@]}"; do
		ko=$build_dir/${built_location[i]}${built_name[i]}.ko
		if [[ ${strip[i]} != no ]]; then
			if [[ ${CC:-} = clang ]]; then llvm-strip -g "$ko"; else "${CROSS_COMPILE:-}strip" -g "$ko"; fi ||
				fail strip 7 "${built_name[i]}.ko cannot be stripped"
		fi
		cp "$ko" "$base_dir/module/${dest_name[i]}.ko" || fail modules 7 "${built_name[i]}.ko cannot be copied"
	done
}

# install_files runs the farm file's command for user-space files.
install_files() {
	local status
	[[ $install ]] || return 0
	{ cd "$build_dir" && mkdir "$work/files"; } || fail install 15 "there is no room for user-space files"
	echo "# phase: install"
	echo "# command: $install"
	(export DESTDIR=$work/files; eval "$install") 3>&- 0< /dev/null
	status=$?
	((status == 0)) || fail install "$status" "the install command ended with status $status"
	[[ $(ls -A "$work/files") ]] || fail install 1 "the install command has put nothing below \$DESTDIR"
	trees+=(files)
}

# keep_tree keeps what POST_BUILD has left in DKMS's folder of the build, such as
# headers, for modules that are built upon this one.
keep_tree() {
	local f left=()
	for f in "$base_dir"/*; do
		[[ ! -e $f || $f = */module || $f = */log ]] || left+=("$f")
	done
	[[ ${left[0]+x} ]] || return 0
	{ mkdir "$work/tree" && cp -r "${left[@]}" "$work/tree/"; } || fail post_build 15 "there is no room for what it has left"
	trees+=(tree)
}

mkdir -p "$work/elsewhere" "${build_dir%/build}" || exit 1
cd "$dkms_tree/$module/$module_version" || exit 1
ln -s "$source_dir" source || exit 1

place_built
llvm='' unsteady='' num_modules=0 built_name=() built_location=() dest_name=() strip=() kept=()
read_conf
check_conf
check_exclusions
check_source
choose_compiler
check_depends
# Of an owner who is not known in the container, nothing can be made; here all is root's.
cp -dR --preserve=mode,timestamps,links "$source_dir/" "$build_dir" || fail copy 15 "the source cannot be copied to $build_dir"
cd "$build_dir" || fail copy 15 "the source cannot be copied to $build_dir"
apply_patches
script pre_build "${PRE_BUILD:-}"
make_command
export KBUILD_BUILD_TIMESTAMP=@0
echo "# phase: make"
echo "# command: $command"
(eval "$command") 3>&- 0< /dev/null
status=$?
echo "# exit code: $status"
((status == 0)) || fail make 10 "make ended with status $status"
collect
script post_build "${POST_BUILD:-}"
for i in "${kept[@]}"; do
	[[ -f $base_dir/module/${dest_name[i]}.ko ]] || fail post_build 7 "post_build has removed ${dest_name[i]}.ko"
	outputs+=("module/${dest_name[i]}.ko")
done
[[ ! -f $base_dir/module/Module.symvers ]] || outputs+=("module/Module.symvers")
keep_tree
install_files
finish built "" 0 ""
