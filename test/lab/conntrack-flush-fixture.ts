/**
 * Makes the NAT whose namespace it runs in forget every mapping: what `conntrack -F` does, which not every
 * machine has. One netlink message (linux/netfilter/nfnetlink_conntrack.h).
 */
import { dlopen } from "bun:ffi";

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const NETLINK_NETFILTER = 12;
/** NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE; without a tuple it deletes them all. */
const deleteConntrack = (1 << 8) | 2;
/** NLM_F_REQUEST | NLM_F_ACK */
const requestWithAck = 1 | 4;

const libc = dlopen("libc.so.6", {
  /** int socket(int domain, int type, int protocol) */
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  /** ssize_t send(int fd, const void *buffer, size_t length, int flags) */
  send: { args: ["i32", "ptr", "u64", "i32"], returns: "i32" },
  /** ssize_t recv(int fd, void *buffer, size_t length, int flags) */
  recv: { args: ["i32", "ptr", "u64", "i32"], returns: "i32" },
} as const).symbols;

const request = Buffer.alloc(20); // struct nlmsghdr, struct nfgenmsg
request.writeUInt32LE(request.length, 0);
request.writeUInt16LE(deleteConntrack, 4);
request.writeUInt16LE(requestWithAck, 6);

const answer = Buffer.alloc(4096); // struct nlmsghdr, struct nlmsgerr
const fd = libc.socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
const sent = libc.send(fd, request, request.length, 0);
const received = sent === request.length ? libc.recv(fd, answer, answer.length, 0) : -1;
const error = received >= 20 ? answer.readInt32LE(16) : -1;
if (error !== 0) {
  console.error(`conntrack flush failed: ${error}`);
  process.exit(1);
}
