# Fetches Debian's packages for `guest`, which sources this file: kernels of several releases, and an arm64 root.
#
# Each architecture has a separate state of apt. No package is installed and no script of a package runs. Uses $cache and
# $run (directories), and die.

# Releases with the kernels 5.10, 6.1 and 6.12, and those with newer kernels.
RELEASES=(bullseye bookworm trixie testing unstable)
# Release of the arm64 root, the most common one.
ROOT_RELEASE=bookworm

# use_apt ARCHITECTURE: makes apt use its state, with lists at most a week old if they can be downloaded.
use_apt() {
  local apt=$cache/apt-$1 mirror
  if [ ! -e "$apt/conf" ]; then
    mkdir -p "$apt"/{lists/partial,archives/partial,etc/{apt.conf.d,preferences.d,sources.list.d}}
    : > "$apt/status"
    # Sources of this machine's packages.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/\?$' | head -n 1)
    [ -n "$mirror" ] || die "apt has no Debian archive (apt-get update?)"
    printf "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror %s main\n" "${RELEASES[@]}" \
      > "$apt/etc/sources.list.d/debian.list"
    cat > "$new" << CONF
APT::Architecture "$1";
APT::Architectures { "$1"; };
APT::Sandbox::User "root";
Dir::Etc "$apt/etc";
Dir::Etc::sourcelist "/dev/null";
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::State::Lists "$apt/lists";
Dir::Cache "$apt";
Dir::Cache::archives "$apt/archives";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
CONF
    mv "$new" "$apt/conf"
  fi
  export APT_CONFIG=$apt/conf
  if [ -z "$(find "$apt/updated" -mtime -7 2> /dev/null)" ]; then
    # A release that has left the archive is an error only for a kernel of that release.
    apt-get update -qq >&2 || echo "guest: not all lists of packages could be downloaded" >&2
    # Without any list, the next run tries again.
    if compgen -G "$apt/lists/*_Packages*" > /dev/null; then touch "$apt/updated"; fi
  fi
}

# unpack DIR PACKAGE [TAR ARGUMENT...]: puts files of a package under DIR.
unpack() {
  mkdir -p "$1" "$run/deb"
  (cd "$run/deb" && apt-get download -qq -o APT::Sandbox::User=root "$2" >&2) || die "cannot download $2 (apt-get update?)"
  dpkg --fsys-tarfile "$run/deb/"*.deb | tar -x -C "$1" "${@:3}"
  rm -r "$run/deb"
}

is_package() { # not grep -q: apt-cache must not die of SIGPIPE
  apt-cache pkgnames "$1" | grep -Fx "$1" > /dev/null
}

# find_kernel SERIES ARCHITECTURE [PAGES]: prints the newest version of the series; "newest" is that of all series. Skips the
# "cloud" variant, which has no 9p.
find_kernel() {
  local series=${1//./[.]}[.]
  [ "$1" != newest ] || series='[0-9]+[.]'
  apt-cache pkgnames linux- | sed -nE "s/^linux-(image|binary)-($series[^-]*(-[0-9]+)?-$2${3:+-$3})\$/\2/p" | sort -V | tail -n 1
}

# fetch_kernel VERSION DIR: puts kernel and modules under DIR, without drivers that no block device needs (all take 400 MB).
fetch_kernel() {
  local packages=("linux-image-$1") package
  # From Linux 7 on an image is two packages.
  ! is_package "linux-binary-$1" || packages=("linux-binary-$1" "linux-modules-$1")
  for package in "${packages[@]}"; do
    unpack "$2" "$package" --exclude='*/kernel/sound' --exclude='*.dtb' \
      --exclude='*/kernel/drivers/'{gpu,hid,hwmon,iio,infiniband,input,media,net,platform,staging,usb}
  done
  [ -e "$2/lib" ] || ln -s usr/lib "$2/lib"
  if [ -e "$2/boot/vmlinuz-$1" ]; then mv "$2/boot/vmlinuz-$1" "$2/image"; else mv "$2/lib/modules/$1/vmlinuz" "$2/image"; fi
  busybox depmod -b "$2" "$1"
}

# fetch_root DIR DENO: makes a Debian root of apt's architecture, with that version of Deno.
fetch_root() {
  local package
  apt-get install -y -qq --no-install-recommends --download-only -t "$ROOT_RELEASE" \
    base-files base-passwd bash bsdextrautils bsdutils btrfs-progs busybox-static coreutils dash diffutils dosfstools e2fsprogs \
    fdisk findutils gawk grep hostname jq libc-bin libc6 libgcc-s1 login mount mtools parted passwd procps python3 sed strace tar \
    udev util-linux util-linux-extra xz-utils > /dev/null || die "cannot resolve the packages of the root"
  mkdir -p "$1"/usr/{bin,sbin,lib,local/bin} "$1"/{proc,sys,dev,run,scratch,tmp,root}
  for package in bin sbin lib; do ln -s usr/$package "$1/$package"; done # like the package usrmerge
  for package in "$cache/apt-arm64/archives/"*.deb; do
    case ${package##*/} in perl* | libperl* | adduser* | debconf* | usrmerge*) continue ;; esac
    dpkg --fsys-tarfile "$package" | tar -x -C "$1" --keep-directory-symlink --exclude='./usr/share/'{doc,man,locale,info}
  done
  rm -f "$cache/apt-arm64/archives/"*.deb
  # Does the necessary part of the work of the packages' scripts.
  ln -s gawk "$1/usr/bin/awk"
  cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"
  cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"
  echo guest > "$1/etc/hostname"
  chmod 1777 "$1/tmp"
  (cd "$run" && npm pack --silent "@deno/linux-arm64-glibc@$2" > /dev/null && tar xzf ./*.tgz) || die "no Deno $2 for arm64"
  install -m 755 "$run/package/deno" "$1/usr/local/bin/deno"
  rm -rf "$run/package" "$run"/*.tgz
}
