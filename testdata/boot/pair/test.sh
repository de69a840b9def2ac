# Both modules are there with their parameters, and so is dummy, by a softdep.
set -e
[ "$MODULES" = "kf_base kf_user" ]
[ "$(cat /sys/module/kf_base/parameters/answer)" = 7 ]
grep -q '^kf_base .* kf_user' /proc/modules
grep -q '^dummy ' /proc/modules
echo "all is as it should be"
