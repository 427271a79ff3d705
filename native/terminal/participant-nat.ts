/**
 * What `nat` shows, in the words of RFC 4787 and 5382. Pure. For native/terminal/.
 */
import { type PortMappingState, protocolNames } from "../punch/portmap.ts";
import { renderTable } from "./table.ts";
import type { Colors } from "./text.ts";
import { type Filtering, type Mapping, printable, type Way } from "../../protocol.ts";
import type { NatReport } from "../participant/events.ts";

const filteringWords: Record<Filtering, string> = {
  dropped: "dropped",
  refused: "refused (RST or ICMP)",
  "let-in": "let in",
};

/** Filtering in the words of RFC 4787 §5, as far as it was measured. */
function unsolicitedWords({ filtering, filteringElsewhere, isTranslated }: NatReport): string {
  if (!filtering) return "the introducer did not say";
  const words = filteringWords[filtering];
  if (filtering !== "let-in" || !filteringElsewhere || !isTranslated) return words;
  return filteringElsewhere === "let-in"
    ? `${words}, from everywhere: endpoint-independent filtering`
    : `${words} from the introducer's address, ${filteringWords[filteringElsewhere]} from another: address-dependent filtering`;
}

const wayWords: Record<Way | "none", (c: Colors) => string> = {
  direct: (c) => c.green("yes"),
  fresh: (c) => c.green("yes"),
  predicted: (c) => c.yellow("likely, by predicting ports"),
  birthday: (c) => c.yellow("likely, by guessing ports (birthday)"),
  none: (c) => c.red("no: forward a port (--port N), use IPv6, or another network"),
};

/** Without a mapping, every way is a guess. */
const cannotTell = "can't tell, since the mapping was not measured";

/** The report: in RFC words, in one plain sentence, and with whom a direct link is possible. */
export function renderNat(report: NatReport, c: Colors): string {
  const { mapping, step, isPreserved, isTranslated, ipv6, expected } = report;
  const allocation = {
    unknown: "unknown",
    "endpoint-independent": "not preserved",
    sequential: `sequential, step ${step}`,
    random: "random",
  };
  const facts = [
    [
      "translation",
      isTranslated
        ? `yes, the introducer sees ${report.observed}`
        : `none, the introducer sees your own address, ${report.observed}`,
    ],
    ["mapping", mappingWords(report)],
    ["port allocation", isPreserved ? "preserved" : allocation[mapping]],
    ["unsolicited SYN", unsolicitedWords(report)],
    ["hairpinning", isTranslated ? hairpinningWords(report) : "not needed"],
    ["IPv6", ipv6 ? "a global address" : "no global address"],
    ["port mapping", isTranslated ? portMappingWords(report.portMapping) : "not needed"],
  ] as const;
  const head = [{ head: "  peer's NAT" }, { head: "direct link" }];
  const table = expected.map(({ peer, way }) => [
    [`  ${peer} `],
    [isTranslated && mapping === "unknown" ? c.yellow(cannotTell) : wayWords[way](c)],
  ]);
  return [
    c.bold(plainSentence(report)),
    ...facts.map(([name, value]) => `  ${name.padEnd(16)} ${value}`),
    // An introducer in our own network can't say how other networks see us.
    ...(isTranslated || report.scope === "global" ? [renderTable(head, table, Infinity)] : []),
  ].join("\n");
}

/** What the router answered (RFC 6887, RFC 6886, UPnP IGD). */
export function portMappingWords(state: PortMappingState | undefined): string {
  switch (state?.is) {
    case "mapped": {
      const { protocol, candidate, lifetimeS } = state;
      const lasts = lifetimeS === 0 ? "until it is deleted" : `for ${lifetimeS} s`;
      return `${candidate} is open ${lasts}, by ${protocolNames[protocol]}`;
    }
    case "double-nat": {
      const { protocol, externalAddress } = state;
      const address = printable(externalAddress) || "no address";
      return `double NAT: the router's own address (${address}, by ${protocolNames[protocol]}) is not the one that others see`;
    }
    case "forwarded": {
      const port = state.candidate.slice(state.candidate.lastIndexOf(":") + 1);
      return `peers are told ${state.candidate}: let it forward TCP port ${port} to this host, port ${port}`;
    }
    case "unavailable":
      return `none: ${printable(state.reason)}`;
    case "asking":
    case "closed":
    case undefined:
      return "the router was not asked";
  }
}

/** It is measured by the mapping's endpoint. */
function hairpinningWords({ hairpinning, mapping }: NatReport): string {
  return hairpinning ? "yes" : mapping === "unknown" ? "can't tell" : "no";
}

/** RFC 4787 §4.1. */
function mappingWords({ mapping, dependsOn, probes }: NatReport): string {
  if (mapping === "unknown")
    return `not measured: nothing answers at ${probes.join(", ")}. Does a firewall block these ports?`;
  if (mapping === "endpoint-independent")
    return "endpoint-independent: one external port for every destination";
  if (dependsOn === "address") return "address-dependent: another external port for every address";
  return "address-and-port-dependent: another external port for every destination";
}

function plainSentence({ mapping, isTranslated, filtering, scope, portMapping }: NatReport): string {
  if (scope === "loopback") return "The introducer is on this host: it can tell nothing about a NAT.";
  if (!isTranslated && scope === "private")
    return "The introducer is in your own network: on the way to it there is no NAT, and of others it can't tell.";
  if (!isTranslated && filtering === undefined)
    return "You have a public address; whether a firewall is before it was not measured.";
  if (!isTranslated) {
    return filtering === "let-in"
      ? "You are on the open Internet: everyone can link with you."
      : "You have a public address behind a firewall: a direct link is possible with every kind of peer.";
  }
  if (portMapping?.is === "mapped" && mapping !== "endpoint-independent")
    return "You are behind a NAT that opens a port when asked: a direct link is possible with every kind of peer.";
  const sentences: Record<Mapping, string> = {
    unknown: "You are behind a NAT that could not be measured.",
    "endpoint-independent":
      "You are behind a friendly NAT: a direct link is possible with every kind of peer.",
    sequential:
      "You are behind a NAT that takes the next port for every connection: it can be predicted, mostly.",
    random:
      "You are behind a NAT that takes a random port for every connection: only friendly peers can link with you.",
  };
  return sentences[mapping];
}
