"""Adds a little to every value and says that it had ten examples."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One update, as large as what came."""
    given = message.content.array_records["arrays"]
    arrays = ArrayRecord({name: Array(value.numpy() + 1e-3) for name, value in given.items()})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 10})})
    return Message(content, reply_to=message)
