#!/bin/sh
# Makes ./rootfs: a static busybox (Debian: busybox-static) and a link to it for
# each of its applets. Nucleus mounts /dev, /proc, /sys and /tmp on what is empty here.
set -eu
umask 022
cd "$(dirname "$0")"
busybox=$(command -v busybox)
rm -rf rootfs
mkdir -p rootfs/bin rootfs/dev rootfs/etc rootfs/proc rootfs/sys rootfs/tmp
cp "$busybox" rootfs/bin/busybox
for applet in $("$busybox" --list); do
	[ "$applet" = busybox ] || ln -s busybox "rootfs/bin/$applet"
done
