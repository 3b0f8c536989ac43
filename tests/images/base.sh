#!/bin/sh
# base.sh FOLDER: writes a base image's files from Debian's packages there, for machines where no registry of images
# answers: base.tar, and a Dockerfile that is made of it. Needs root and debootstrap; takes a minute or several.
# SUITE is Debian's release (default: bookworm), MIRROR where packages come from (default: where apt has them from).
set -eu
folder=$1
mirror=${MIRROR:-$(apt-cache policy base-files | grep -oE 'https?://[^ ]+' | head -n 1)}
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "${SUITE:-bookworm}" "$folder/root" "$mirror"
ln -sf python3 "$folder/root/usr/bin/python"
rm -rf "$folder"/root/var/cache/apt/archives/*.deb "$folder"/root/var/lib/apt/lists/*
tar -C "$folder/root" -cf "$folder/base.tar" .
rm -rf "$folder/root"
cat > "$folder/Dockerfile" << 'END'
FROM scratch
ADD base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3"]
END
