# Installs Debian 12 with its own kernel and GRUB onto the empty disk $1, from the mirror. Runs in a Debian guest.
set -e
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
mirror=http://deb.debian.org/debian
apt-get -q update
apt-get -q -y install --no-install-recommends debootstrap fdisk
printf 'label: dos\n, , L, *\n' | sfdisk -q "$1"
mke2fs -q -F -t ext4 "${1}1"
mount "${1}1" /mnt
debootstrap --variant=minbase --include=systemd-sysv,udev,login,passwd,iproute2,kmod bookworm /mnt $mirror
mount --bind /dev /mnt/dev
mount -t proc proc /mnt/proc
mount -t sysfs sys /mnt/sys
echo "UUID=$(blkid -s UUID -o value "${1}1") / ext4 errors=remount-ro 0 1" >/mnt/etc/fstab
echo installed >/mnt/etc/hostname
chroot /mnt apt-get -q -y install --no-install-recommends linux-image-amd64 grub-pc initramfs-tools
printf 'GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX="console=ttyS0"\nGRUB_TERMINAL="serial console"\n' >>/mnt/etc/default/grub
chroot /mnt grub-install "$1"
chroot /mnt update-grub
chroot /mnt passwd -q -d root
umount -R /mnt
sync
echo "The installation is complete."
