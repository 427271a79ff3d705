/**
 * What Linux does with a TCP socket in a punch, and can be told to do otherwise: which ICMP errors end a connect and how a
 * connection ends. Other kernels do as they like. It owns no descriptor. For native/host/, native/secure/ and native/punch/.
 */
import { getOption, setOption } from "./libc.ts";
import { platform } from "./platform.ts";

const isLinux = process.platform === "linux";
// linux/in.h, linux/tcp.h
const IPPROTO_IP = 0;
const IP_TTL = 2;
const IP_MINTTL = 21;
/** TCP_INFO: the options that both SYNs had. */
const info = { name: 11, optionsAt: 5, timestamps: 1 };

/**
 * The hops that a SYN may take which {@link ignoreUnreachable} has made deaf to ICMP. Paths of the Internet have some 30 at
 * most. What the other end sends must arrive with more hops left, and so must the RST of a NAT. Both begin with 64 or more.
 */
const deafTtl = 38;
const maxTtl = 255;

/**
 * Call it before connect: an ICMP error does not end the connect, a RST does. Linux applies IP_MINTTL not only to what
 * arrives, but also to our own packet that an ICMP error quotes (tcp_v4_err, since Linux 2.6.34). So we send with few hops,
 * and ask for more than those. The other end must send with more: it calls {@link reachDeaf}.
 */
export function ignoreUnreachable(fd: number): void {
  if (!isLinux) return;
  setOption(fd, IPPROTO_IP, IP_TTL, deafTtl);
  setOption(fd, IPPROTO_IP, IP_MINTTL, deafTtl);
}

/** Call it before connect: what is sent reaches a socket that ignores ICMP errors. */
export function reachDeaf(fd: number): void {
  if (isLinux) setOption(fd, IPPROTO_IP, IP_TTL, maxTtl);
}

/** Once connected: undoes both. */
export function hearAll(fd: number): void {
  if (!isLinux) return;
  setOption(fd, IPPROTO_IP, IP_MINTTL, 0);
  setOption(fd, IPPROTO_IP, IP_TTL, -1);
}

/**
 * From now on close() ends the connection by FIN, and not by RST. A late RST would delete the mapping of the next SYN on a
 * NAT. The side that ends it first keeps the four-tuple in TIME_WAIT. Linux lets a socket connect over that if it is bound
 * to the port, and the old connection had timestamps (tcp_twsk_unique). Where it would not, close() goes on sending RST.
 */
export function closeInOrder(fd: number): void {
  if (!isLinux) return;
  const options = getOption(fd, platform.IPPROTO_TCP, info.name, info.optionsAt + 1)?.getUint8(
    info.optionsAt,
  );
  if (options !== undefined && (options & info.timestamps) !== 0)
    setOption(fd, platform.SOL_SOCKET, platform.SO_LINGER, 0, 0);
}
