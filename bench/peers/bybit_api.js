// The runner `bybit-api`: bybit-api and ioredis on Node, as their READMEs show; one client for each channel, whose
// messages it hands over parsed. The argument is the folder with the installed packages.
const { createRequire } = require("node:module");
const path = require("node:path");
const required = createRequire(path.join(process.argv[2], "package.json"));
const { WebsocketClient } = required("bybit-api");
const { Redis } = required("ioredis");

const redis = new Redis(Number(process.env.REDIS_PORT), process.env.REDIS_HOST);
const kinds = [
  ["stream:bybit_orderbook", "orderbook.50."],
  ["stream:bybit_trades", "publicTrade."],
  ["stream:bybit_ticker", "tickers."],
  ["stream:bybit_liquidations", "allLiquidation."],
];

for (const symbols of JSON.parse(process.env.BENCH_GROUPS)) {
  for (const [channel, topic] of kinds) {
    const client = new WebsocketClient({ wsUrl: process.env.BENCH_URL + "/v5/public/linear" });
    client.on("update", (message) => redis.publish(channel, JSON.stringify(message)));
    client.on("exception", (error) => console.error(error));
    client.subscribeV5(symbols.map((symbol) => topic + symbol), "linear");
  }
}
