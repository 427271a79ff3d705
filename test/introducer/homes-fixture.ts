/** An introducer's side of homes.ts with one room at home, as a program that can be killed and stopped. */
import { Homes, type HomesOwner } from "../../native/introducer/redis/homes.ts";
import { patienceMs } from "../patience-fixture.ts";

const [url = "", address = "", room = ""] = process.argv.slice(2);
const rooms = new Set<string>();
const owner: HomesOwner = {
  rooms: () => rooms,
  counts: () => ({ participants: 1, rooms: rooms.size, firstId: 0 }),
  movedOut: (left, to) => {
    rooms.delete(left);
    console.log(`moved ${left} ${to}`);
  },
  notice: () => {},
  sharing: () => {},
};
const homes = new Homes(url, address, owner, patienceMs);
const home = await homes.find(room);
rooms.add(room);
console.log(`${room} ${home}`);
