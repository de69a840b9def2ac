#!/bin/sh
# Keeps what modules that are built upon this one want of its build.
mkdir -p "$1/module" && cp Module.symvers "$1/module/Module.symvers" && echo '#define KF_BASE_CONFIG 7' > "$1/kf_base_config.h"
