package org.rootlet.demo

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.util.AttributeSet
import android.view.MotionEvent
import android.view.View

/** A square of 8 by 8 cells to draw on: what the demo's model takes, each cell from 0 to 1. */
class DrawView(context: Context, attributes: AttributeSet) : View(context, attributes) {
    /** Row by row, [64]. */
    val cells = FloatArray(SIDE * SIDE)

    /** Called when a stroke ends. */
    var onStroke: () -> Unit = {}

    private val paint = Paint()

    /** Wipes the drawing. */
    fun clear() {
        cells.fill(0f)
        invalidate()
    }

    override fun onTouchEvent(event: MotionEvent): Boolean {
        if (event.action == MotionEvent.ACTION_UP) {
            onStroke()
            return performClick()
        }
        val cell = minOf(width, height) / SIDE.toFloat()
        val x = event.x / cell - 0.5f
        val y = event.y / cell - 0.5f
        for (i in cells.indices) {
            val distance = Math.hypot((i % SIDE - x).toDouble(), (i / SIDE - y).toDouble())
            cells[i] = maxOf(cells[i], (1.3 - distance).coerceIn(0.0, 1.0).toFloat())
        }
        invalidate()
        return true
    }

    override fun performClick(): Boolean {
        super.performClick()
        return true
    }

    override fun onDraw(canvas: Canvas) {
        val cell = minOf(width, height) / SIDE.toFloat()
        for (i in cells.indices) {
            val shade = (225 - 200 * cells[i]).toInt()
            paint.setARGB(255, shade, shade, shade)
            val left = i % SIDE * cell
            val top = i / SIDE * cell
            canvas.drawRect(left + 1, top + 1, left + cell - 1, top + cell - 1, paint)
        }
    }

    private companion object {
        const val SIDE = 8
    }
}
