#!/bin/sh
# Makes ./rootfs of a static busybox (Debian: busybox-static), and digest.hcl with
# the digest that pins it. NUCLEUS names the program if it is not in PATH.
set -eu
umask 022
cd "$(dirname "$0")"
rm -rf rootfs
mkdir -p rootfs/bin rootfs/dev rootfs/etc rootfs/proc rootfs/sys rootfs/tmp
cp "$(command -v busybox)" rootfs/bin/busybox
digest=$("${NUCLEUS:-nucleus}" rootfs digest rootfs)
echo "digest = \"$digest\"" >digest.hcl
