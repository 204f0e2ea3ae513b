-- The load: clients that ask, hang up and come again. One in two asks once more before it hangs up.
local asks = 0
function request()
  asks = asks + 1
  return wrk.format("GET", "/" .. asks, {["Connection"] = math.random(2) == 1 and "close" or "keep-alive"})
end
