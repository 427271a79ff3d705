/**
 * What a NAT or a firewall of the lab does, in RFC words, and the nftables rules that make it so. Pure text.
 *
 * Filtering is always address-and-port-dependent (RFC 4787 §5): netfilter knows no other. What else a NAT can be, the
 * one that is a program is (`nat-behaviour.ts`); here are the rules that lead every IPv4 packet through it.
 */

/**
 * How an internal endpoint gets its external one (RFC 4787 §4.1). All but the first are
 * address-and-port-dependent.
 * - `endpoint-independent`: the internal port, as long as it is free (Linux `masquerade`)
 * - `sequential`: the next port for each new mapping, from one counter a NAT; `{ step }` for another step
 * - `sequential-256`: 256 further each time: what a NAT does that counts in the wrong byte order
 * - `random`: any port (Linux `masquerade fully-random`)
 */
export type Mapping = "endpoint-independent" | "sequential" | "sequential-256" | "random" | { step: number };

/** What a SYN that fits no mapping gets on the WAN side: nothing, a RST, or an ICMP error. */
export type Unsolicited = "drop" | "reset" | "icmp" | "icmp-prohibited";

const answers: Record<Unsolicited, string> = {
  drop: "drop",
  reset: "meta l4proto tcp reject with tcp reset",
  icmp: "reject with icmpx port-unreachable", // RFC 5382 REQ-4
  "icmp-prohibited": "reject with icmpx admin-prohibited",
};

/** Ports a sequential NAT uses before it starts again: netlink takes no much larger rule. */
const sequentialPorts = 2048;
/** Packets a device holds; the default of 500 would lose a burst of SYNs. */
export const deviceQueue = 5000;
const lowestPort = 1024;
const highestPort = 65_535;

/**
 * The filter of every box between `lan` and `wan`. From the LAN, the box's own WAN address is as closed as
 * from outside: with hairpinning such packets are routed elsewhere and never come by `incoming`. `exempt` is a rule
 * that goes before all others.
 */
export function filterRules(unsolicited: Unsolicited, exempt = ""): string {
  return `
table inet filtering {
  chain unsolicited {
    ${answers[unsolicited]}
    drop
  }
  chain forwarding {
    type filter hook forward priority filter; policy drop;
    ${exempt}
    ct state invalid oifname "wan" drop
    ct state established,related accept
    iifname "wan" goto unsolicited
    ct state invalid drop
    accept
  }
  chain incoming {
    type filter hook input priority filter; policy accept;
    ${exempt}
    iifname "lo" accept
    ct state established,related accept
    meta l4proto icmpv6 accept
    iifname "wan" goto unsolicited
    iifname "lan" fib daddr . iif type != local goto unsolicited
  }
}
`;
}

/**
 * What leads through the program, for `ip -batch`: from the LAN by the device `inside`, from the WAN by `outside`, and
 * what it writes there goes on as usual. By protocol, because ARP asks the routing too, and must find our addresses.
 */
export function detour(gateway: string): string {
  const through = (pref: number, from: string, table: number) =>
    ["tcp", "udp", "icmp"].map(
      (protocol) => `rule add pref ${pref} iif ${from} ipproto ${protocol} lookup ${table}`,
    );
  return [
    "tuntap add dev inside mode tun",
    "tuntap add dev outside mode tun",
    `link set inside txqueuelen ${deviceQueue} up`,
    `link set outside txqueuelen ${deviceQueue} up`,
    "route add default dev inside table 101",
    "route add default dev outside table 102",
    `rule add pref 1 iif lan to ${gateway} lookup local`,
    ...through(2, "lan", 101),
    ...through(3, "wan", 102),
    "rule add pref 10 lookup local",
    "rule del pref 0",
  ].join("\n");
}

/** The source translation of a NAT whose WAN has that address; its own RSTs take none of the ports. */
export function natRules(mapping: Mapping, address: string): string {
  const tcpOrUdp = 'oifname "wan" meta l4proto { tcp, udp }';
  return `
table ip translation {
  chain translating {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ${address} accept
    ${translation(mapping, tcpOrUdp, address)}
    oifname "wan" masquerade
  }
}
`;
}

function translation(mapping: Mapping, match: string, address: string): string {
  if (mapping === "endpoint-independent") return "";
  if (mapping === "random") return `${match} masquerade fully-random`;
  if (mapping === "sequential-256") return `${match} snat to ${address} : numgen inc mod 20000 offset 30000`;
  const step = mapping === "sequential" ? 1 : mapping.step;
  return `${match} snat to ${address} : numgen inc mod ${sequentialPorts} map { ${sequentialMap(step)} }`;
}

/** A map, because `numgen` itself counts in the wrong byte order when it is a port. */
function sequentialMap(step: number): string {
  const base = 20_000 + Math.floor(Math.random() * 20_000);
  const span = highestPort - lowestPort + 1;
  const port = (index: number) => lowestPort + ((base - lowestPort + index * step) % span);
  return Array.from({ length: sequentialPorts }, (_, index) => `${index} : ${port(index)}`).join(", ");
}
