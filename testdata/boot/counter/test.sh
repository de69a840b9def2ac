# busybox's sh runs it when the module is loaded.
set -e
[ "$MODULES" = kf_counter ]
for n in 1 2 3; do
	[ "$(cat /dev/kf_counter)" = $n ]
done
