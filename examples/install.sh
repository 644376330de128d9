#!/bin/sh
# Copy files into an image. With losetup it takes an attach, a mount, and a trap that undoes
# both; and what kill -9 leaves behind, nobody undoes:
#
#     device=$(losetup --find --show "$image")
#     trap 'umount "$directory"; losetup --detach "$device"' EXIT
#     mount "$device" "$directory"
#     cp -r "$@" "$directory"
#
# Here the mount is for cp alone, and gone with it.
#
#     examples/install.sh disk.img FILE...
set -eu
image=$1
shift
directory=$(mktemp -d)
trap 'rmdir "$directory"' EXIT
loopdev run --mount "$directory" "$image" -- cp -r "$@" "$directory"
