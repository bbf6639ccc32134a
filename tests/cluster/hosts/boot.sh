#!/usr/bin/env bash
# The first process of a test host, in namespaces of its own.
#
#   boot.sh NAME DISK KEYS PATH...
#
# DISK keeps what the host writes, through power cuts too. KEYS is a folder with an ssh key pair and
# the host table. Each PATH is a folder that must be there, wherever the machine has mounted it. To
# the software that asks, the host has one core.
set -euo pipefail
name=$1 disk=$2 keys=$3
shift 3

# Show the machine's folder $1 at the same place below the host's root: what the host writes goes to
# its own disk.
layer() {
  local store=$disk/layers${1%/}/.layer
  mkdir -p "$store/changes" "$store/work" "$root$1"
  mount -t overlay "$name" -o "lowerdir=$1,upperdir=$store/changes,workdir=$store/work" "$root$1"
}

root=$disk/root
layer /
mount -t tmpfs "$name" "$root/tmp" && chmod 1777 "$root/tmp"
mount -t tmpfs "$name" "$root/run" && mkdir -m 755 "$root/run/sshd"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --bind "$keys/cores" "$root/sys/devices/system/cpu/online"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=2g "$name" "$root/dev/shm"
for path; do # a layer shows one file system, and what lies under /tmp was just hidden
  [ "$(findmnt -nro TARGET -T "$path")" = / ] && [ -e "$root$path" ] || layer "$path"
done

home=/home/ray
if [ ! -d "$root$home" ]; then # the first time
  mkdir -p "$root$home/.ssh"
  cp "$keys/id_ed25519.pub" "$root$home/.ssh/authorized_keys"
  cp "$keys/hosts" "$root/etc/hosts"
  install -m 600 "$keys/id_ed25519" "$root/etc/ssh/test_host_key"
  chmod -R go= "$root$home/.ssh"
  sed -i "s#^root:.*#root:x:0:0:root:$home:/bin/bash#" "$root/etc/passwd"
  chown 0:0 "$root$home"
fi

hostname "$name"
ip link set lo up
cd "$root"
mkdir -p machine
pivot_root . machine
umount -l machine
# As the first process it is also the one that buries orphans, which sshd does.
exec /usr/sbin/sshd -D -e -f /dev/null -h /etc/ssh/test_host_key -o PidFile=none \
  -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -o UsePAM=no \
  -o MaxSessions=50 -o MaxStartups=50
