//! The first process of the guest.

/// Loads the modules, gives eth0 the addresses of the kernel command line, and answers commands on the second
/// serial port. A request is `NUMBER COMMAND\n`, its answer `NUMBER STATUS LENGTH\n` and LENGTH bytes of output.
pub(super) const INIT: &str = r#"#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
while read -r module; do insmod "$module"; done </modules
ip link set lo up
for tries in 1 2 3 4 5 6 7 8 9 10; do
    [ -e /sys/class/net/eth0 ] && break
    sleep 0.1
done
ip link set eth0 up
addresses=$(sed -n 's/.*addresses=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
for address in $addresses; do ip addr add "$address" dev eth0; done
stty -F /dev/ttyS1 raw -echo
# This shell prefers its own, lesser ip and ping to programs of that name.
real='ip() { /usr/bin/ip "$@"; }; ping() { /usr/bin/ping "$@"; }'
exec 3<>/dev/ttyS1
echo "agent ready" >&3
while read -r number command <&3; do
    sh -c "$real; $command" >/tmp/.said 2>&1 </dev/null
    echo "$number $? $(stat -c %s /tmp/.said)" >&3
    cat /tmp/.said >&3
done
"#;
