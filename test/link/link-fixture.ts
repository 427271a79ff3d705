/**
 * A peer to be killed: connects to the endpoint given as argument, is the controlling side of a link, says
 * hello and answers whatever it is asked. The identity comes as JSON on stdin.
 */
import type { Identity } from "../../native/link/identity.ts";
import { Channel, Credentials } from "../../native/link/channel.ts";
import { Link } from "../../native/link/link.ts";
import { connectShared } from "../../native/socket.ts";
import { parseEndpoint } from "../../protocol.ts";

const identity: Identity = await Bun.stdin.json();
const { socket } = await connectShared(parseEndpoint(process.argv[2]!)!, 5_000);
const channel = new Channel(
  socket,
  "public",
  { role: "controlling", offers: ["a link"] },
  new Credentials(identity),
);
await channel.secured;
const link = new Link(channel);
link.onClose = (reason) => console.log(reason);
await link.say("hello");
console.log("heard");
